"""What a model of transformers demands of a prefix, found out by running it.

Names in configurations differ and are sometimes wrong about single layers; a forward is not.  A few
tokens are computed at once, and again with the keys and values of the first as a prefix of the
others: where the two agree, a prefix reaches every layer, and nothing else counts it.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ptune.base.native import native_context
from ptune.errors import ModelError
from ptune.models.causal_lm import CausalLM
from ptune.models.native import FULL, SLIDING
from ptune.models.prefix_encoder import PrefixEncoder, PrefixShape
from ptune.models.text_prefix import start_from

_TOKENS, _PREFIX = 7, 3
_FAILURES = (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError)
# Of the largest logit; a mistake of position or mask is far above.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.15}


@torch.inference_mode()
def probe(model: PreTrainedModel) -> None:
    """Set `prefix_shape` and `learned_positions` of a model's decoder.

    Args:
        model: from `native.prepare`, with its weights.

    Raises:
        ModelError: its layers hold no plain keys and values, or a prefix does not reach them.
    """
    decoder: Any = model.base_model
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, _TOKENS + 1, device=model.device)[None] * 7 % vocabulary
    here = torch.arange(_TOKENS, device=model.device)[None]
    whole, cache = _measure(model, ids)
    moved = _run(model, input_ids=ids, position_ids=here + 1, use_cache=False)
    if not _same(moved, whole):
        decoder.learned_positions = native_context(model.config.to_dict()) or sys.maxsize
    pairs = [(la.keys[0, :, :_PREFIX], la.values[0, :, :_PREFIX]) for la in cache.layers]
    decoder.prefix_encoder = PrefixEncoder(decoder.prefix_shape, _PREFIX, dropout=0.0)
    decoder.prefix_encoder.to(model.device)
    try:
        start_from(decoder.prefix_encoder, torch.stack([torch.stack(pair) for pair in pairs]))
        # Where the tokens stood; a prefix that takes positions is counted by the decoder itself.
        places = here[:, _PREFIX:] - (0 if decoder.learned_positions is None else _PREFIX)
        behind = _run(model, input_ids=ids[:, _PREFIX:], position_ids=places, use_cache=False)
    finally:
        decoder.prefix_encoder = None
    if not _same(behind, whole[:, _PREFIX:]):
        raise _refused(model, "its layers do not see keys and values in front of a text")
    library = super(CausalLM, model).forward  # type: ignore[misc]
    if not _same(model.scoring_head(whole), library(input_ids=ids, use_cache=False).logits):
        raise _refused(model, "its logits are not what its head makes of the last layer")


def measure_empty(model: PreTrainedModel) -> None:
    """Set `prefix_shape` of a decoder whose weights are without storage.

    Some do not run so, as a mixture of experts, where values decide which expert runs; their shape
    is taken from the configuration, and seen to be right when the model is loaded.

    Args:
        model: from `native.prepare`.

    Raises:
        ModelError: its layers hold no plain keys and values.
    """
    decoder: Any = model.base_model
    config = decoder.config
    _check_kinds(model)
    cache = DynamicCache(config=config)
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    try:
        with torch.inference_mode():
            decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        decoder.prefix_shape = _shape(model, cache)
    except _FAILURES:
        hidden, heads = config.hidden_size, config.num_attention_heads
        width = getattr(config, "head_dim", None) or hidden // heads
        grouped = getattr(config, "num_key_value_heads", None) or heads
        decoder.prefix_shape = PrefixShape(
            config.num_hidden_layers, grouped, width, hidden, projection_input=hidden
        )


@torch.inference_mode()
def _measure(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, DynamicCache]:
    """Set `prefix_shape` by a text; its hidden states, keys and values."""
    _check_kinds(model)
    decoder: Any = model.base_model
    cache = DynamicCache(config=decoder.config)
    states = _run(model, input_ids=ids, past_key_values=cache, use_cache=True)
    decoder.prefix_shape = _shape(model, cache)
    return states, cache


def _run(model: PreTrainedModel, **given: Any) -> Tensor:
    """The hidden states of a forward of the decoder.

    Raises:
        ModelError: it takes no such arguments.
    """
    try:
        return model.base_model(**given).last_hidden_state  # type: ignore[no-any-return]
    except _FAILURES as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _refused(model, f"it takes no cache, positions and mask ({reason})") from error


def _check_kinds(model: PreTrainedModel) -> None:
    kinds = set(getattr(model.config, "layer_types", None) or ()) - {FULL, SLIDING}
    if kinds:
        raise _refused(model, f"it has layers of {', '.join(sorted(kinds))}")


def _shape(model: PreTrainedModel, cache: DynamicCache) -> PrefixShape:
    """The shape that all layers' keys and values have."""
    layers = model.config.num_hidden_layers
    shapes = set()
    for number, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.dim() != 4:
            kind = type(layer).__name__.removesuffix("Layer").removeprefix("Dynamic")
            raise _refused(model, f"layer {number} holds no keys and values but {kind}")
        shapes |= {(*keys.shape[1::2],), (*values.shape[1::2],)}
    if len(cache.layers) != layers:
        raise _refused(
            model, f"{layers} layers have keys and values of {len(cache.layers)}, which some share"
        )
    if len(shapes) > 1:
        listed = ", ".join(f"{heads} x {width}" for heads, width in sorted(shapes))
        raise _refused(model, f"keys and values are not of one shape in all layers ({listed})")
    heads, width = shapes.pop()
    hidden = model.config.hidden_size
    return PrefixShape(layers, heads, width, hidden, projection_input=hidden)


def _same(one: Tensor, other: Tensor) -> bool:
    largest = other.abs().max().clamp(min=1e-6)
    return bool((one - other).abs().max() <= _TOLERANCE[other.dtype] * largest)


def _refused(model: PreTrainedModel, reason: str) -> ModelError:
    return ModelError(
        f"model_type {model.config.model_type!r} takes no prefix: {reason}; "
        "take a model whose layers all have attention over keys and values"
    )
