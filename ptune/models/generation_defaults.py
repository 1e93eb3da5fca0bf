"""How a base model generates where nobody says otherwise: greedily, up to its stop ids."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from ptune.base.folder import Generation

# ChatGLM3 and GLM-4 end their turn by beginning somebody else's: <|user|> and <|observation|>.
_CHATGLM3_STOPS = [64795, 64797]
_GLM4_STOPS = [7, 9]  # behind <|endoftext|>, with which its control tokens begin


def default_generation_config(generation: Generation, config: Any) -> GenerationConfig:
    """What `generate` does with a model of `generation`, whose configuration has the ids."""
    end = config.eos_token_id
    stops = list(end) if isinstance(end, list) else [end]
    others = []
    if generation is Generation.CHATGLM3:
        others = _CHATGLM3_STOPS
    elif generation is Generation.GLM4:
        others = [min(stops) + place for place in _GLM4_STOPS]
    stops += [stop for stop in others if stop not in stops]
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=stops,
        pad_token_id=config.pad_token_id,
        do_sample=False,
    )
