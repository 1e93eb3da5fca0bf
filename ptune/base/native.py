"""What the config.json of a model says that transformers has itself: Qwen, Llama, GPT-2, ...

The library's own configuration classes check it; no code of the folder is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptune.errors import ModelError

# Under which names the longest text stands.
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")


def is_native(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of no ChatGLM."""
    return config.get("model_type") != "chatglm"


def check_native(config: dict[str, Any], file: Path) -> None:
    """Refuse what is no causal language model of the library, or has weights of another kind.

    Raises:
        ModelError: naming what is wrong.
    """
    kind = config.get("model_type")
    known = type(kind) is str and kind in _causal_models()
    if not known and "auto_map" in config:
        raise ModelError(
            f"model_type {kind!r} in {file} brings its own code, which ptune never runs; "
            "take a model that transformers has itself"
        )
    if not known:
        raise ModelError(
            f"model_type {kind!r} in {file} is neither ChatGLM nor a causal language model that "
            "the installed transformers knows; take another model, or a newer transformers"
        )
    if (quantized := config.get("quantization_config")) is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ModelError(
            f"quantization_config {method!r} in {file}: its weights are quantized already, in a "
            "way that ptune does not read; pass the folder of the half-precision model"
        )
    whole = native_config(config, file)
    if whole.get_text_config() is not whole:
        raise ModelError(
            f"model_type {kind!r} in {file} is of more than text; take a model of text alone"
        )


def native_config(config: dict[str, Any], file: Path) -> Any:
    """A config.json as a configuration of the library.

    Raises:
        ModelError: a field that the library does not take.
    """
    from transformers import CONFIG_MAPPING

    settings = {k: v for k, v in config.items() if k not in ("auto_map", "prompt_format")}
    try:
        return CONFIG_MAPPING[config["model_type"]].from_dict(settings)
    except Exception as error:  # its validators have classes of their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"{file} is refused by transformers ({reason}); download it again"
        ) from error


def native_context(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model can see at once; None where config.json does not say."""
    found = (config.get(name) for name in _CONTEXT)
    return next((length for length in found if type(length) is int), None)


def _causal_models() -> Mapping[str, str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
