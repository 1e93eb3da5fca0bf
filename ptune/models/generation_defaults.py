"""How a base model generates where nobody says otherwise: greedily, up to its stop ids."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from ptune.base.folder import BaseModel, Generation
from ptune.data.template_tokenizer import shared_template_tokenizer

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


def native_generation_config(base: BaseModel, model: PreTrainedModel) -> GenerationConfig:
    """The same for a model that transformers has itself.

    Its stop ids are those of its generation_config.json, and what its chat template puts behind an
    answer, which is what training teaches.
    """
    stops: list[int] = []
    for said in (model.generation_config.eos_token_id, model.config.eos_token_id):
        stops += said if isinstance(said, list) else [] if said is None else [said]
    tokenizer: Any = shared_template_tokenizer(base)
    return GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=[*dict.fromkeys([*stops, tokenizer.end_of_answer_id])],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
