"""How a base model generates where nobody says otherwise: greedily, up to its stop ids."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from ptune.base.folder import Generation

# ChatGLM3 ends its turn by beginning somebody else's: <|user|> and <|observation|>.
_CHATGLM3_STOPS = [64795, 64797]


def default_generation_config(generation: Generation, config: Any) -> GenerationConfig:
    """What `generate` does with a model of `generation`, whose configuration has the ids."""
    end = config.eos_token_id
    stops = list(end) if isinstance(end, list) else [end]
    if generation is Generation.CHATGLM3:
        stops += [stop for stop in _CHATGLM3_STOPS if stop not in stops]
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=stops,
        pad_token_id=config.pad_token_id,
        do_sample=False,
    )
