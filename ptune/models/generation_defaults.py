"""How a base model generates where nobody says otherwise: greedily, up to its stop ids."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from ptune.base.folder import Generation, find_base_model

# ChatGLM3 ends its turn by beginning somebody else's: <|user|> and <|observation|>.
_CHATGLM3_STOPS = [64795, 64797]


def default_generation_config(generation: Generation, config: Any) -> GenerationConfig:
    """What `generate` does with a model of `generation`, whose configuration has the ids."""
    stops = [config.eos_token_id]
    if generation is Generation.CHATGLM3:
        stops += _CHATGLM3_STOPS
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=stops,
        pad_token_id=config.pad_token_id,
        do_sample=False,
    )


class GenerationDefaults:
    """For a model class whose `from_pretrained` reads folders without generation_config.json."""

    generation_config: GenerationConfig
    config: Any

    def adjust_generation_fn(
        self, generation_config: GenerationConfig | None, *args: Any, **kwargs: Any
    ) -> None:
        """Called by the library after `from_pretrained`; the fourth argument is the path."""
        super().adjust_generation_fn(generation_config, *args, **kwargs)  # type: ignore[misc]
        path = args[2]  # None where a state dict was given
        if path and generation_config is None and self.generation_config._from_model_config:
            base = find_base_model(path, weights=False)
            self.generation_config = default_generation_config(base.generation, self.config)
