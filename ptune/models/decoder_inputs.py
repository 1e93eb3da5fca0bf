"""What both decoders' forwards are given: checked, and put in one form."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache

from ptune.errors import ModelError


def check_arguments(decoder: Any, given: dict[str, Any], known: frozenset[str]) -> None:
    """Refuse arguments that a decoder's forward does not know, as Python does.

    Args:
        decoder: named in the error.
        given: what came as `**kwargs`.
        known: what may come.

    Raises:
        TypeError: naming one.
    """
    if unknown := given.keys() - known:
        forward = f"{type(decoder).__name__}.forward()"
        raise TypeError(f"{forward} got an unexpected keyword argument '{min(unknown)}'")


def embed(decoder: Any, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """Choose or look up the embeddings `[B, S, hidden]`.

    Raises:
        ValueError: neither ids nor embeddings, or both.
    """
    if inputs_embeds is not None and input_ids is None:
        return inputs_embeds
    if input_ids is None or inputs_embeds is not None:
        raise ValueError("pass input_ids or inputs_embeds, and not both")
    return decoder.get_input_embeddings()(input_ids)  # type: ignore[no-any-return]


def recomputes(decoder: Any) -> bool:
    """Whether gradient checkpointing runs layers twice now, those of a module inside included."""
    return decoder.training and any(
        getattr(module, "gradient_checkpointing", False) for module in decoder.modules()
    )


def working_cache(decoder: Any, past_key_values: Cache | None, use_cache: bool) -> Cache | None:
    """Choose where a forward keeps the keys and values of its text.

    Args:
        decoder: the model.
        past_key_values: the caller's cache.
        use_cache: whether the caller wants one back.

    Raises:
        ModelError: a cache while gradient checkpointing runs every layer twice.
    """
    if past_key_values is None:
        return DynamicCache(config=decoder.config) if use_cache else None
    if recomputes(decoder):
        raise ModelError(
            "past_key_values does not go with gradient checkpointing, which computes every layer "
            "twice and would fill it twice; call model.gradient_checkpointing_disable() or eval()"
        )
    return past_key_values
