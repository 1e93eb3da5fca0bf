"""Any causal language model that transformers has itself, with a prefix in front of its text.

A model and its decoder are given the classes below in front of their own, as
`torch.nn.utils.parametrize` does with a module that it changes; all that is computed between
embeddings and logits stays the library's.

The prefix stands outside of the text: no mask, window or cache of the library counts it, and every
token sees all of it.  It takes no positions, as in ChatGLM, where positions are relative; where
they are learned, as in GPT-2, it takes the first `P`, as in PEFT.

Shapes: `B` batch, `S` text tokens of this call, `P` prefix tokens, `K` all keys.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_layers import GradientCheckpointingLayer

from ptune.errors import ModelError
from ptune.models.causal_lm import CausalLM
from ptune.models.causal_text import CausalText, positions_of_text
from ptune.models.decoder_inputs import embed, recomputes, working_cache
from ptune.models.native_head import scoring_head
from ptune.models.prefix_encoder import (
    PrefixedCache,
    PrefixEncoder,
    PrefixShape,
    extend_mask,
    prefix_length,
    show_prefix,
    text_length,
)

_TURN_INSIDE = {"gptj", "codegen"}  # each layer for itself
_FIXED = ("default", "linear", "llama3", "yarn")  # whose frequencies do not depend on the length
FULL, SLIDING = "full_attention", "sliding_attention"  # the library's kinds of layers


class NativeDecoder(CausalText):
    """What a decoder of the library gets in front of its class.

    Attributes:
        prefix_shape: what it demands of a prefix.
        prefix_encoder: the prefix, or None.
        prefix_enabled: whether it is shown.
        stages: parts in which `run_layers` can be run.
    """

    prefix_shape: PrefixShape
    prefix_encoder: PrefixEncoder | None
    prefix_enabled: bool
    config: Any
    stages = 1

    def turn_keys(self, keys: Tensor, by: int) -> Tensor:
        """Move keys to other positions: R(by), in float32; as they are where none is in a key.

        Args:
            keys: `[B, G, S, D]`, as the KV cache has them.
            by: added to the position of each.

        Raises:
            ModelError: the library turns them in a way that cannot be asked for from outside.
        """
        kind = self.config.model_type
        rotary = getattr(self, "rotary_emb", None)
        if rotary is None and kind not in _TURN_INSIDE:
            return keys.float()
        scheme = (getattr(self.config, "rope_parameters", None) or {}).get("rope_type", "default")
        position = torch.full((1, 1), by, device=keys.device)
        apply = getattr(sys.modules[type(self).__module__], "apply_rotary_pos_emb", None)
        if rotary is None or apply is None or scheme not in _FIXED:
            raise ModelError(
                f"keys of {kind} cannot be turned to other positions from outside (rope_type "
                f"{scheme!r}); keep its prefixes in ptune's own format"
            )
        try:
            cos, sin = rotary(keys.float(), position_ids=position)
        except TypeError as error:  # frequencies by kind of layer
            raise ModelError(
                f"layers of {kind} turn their keys in several ways; keep its prefixes in ptune's "
                "own format"
            ) from error
        scale = getattr(rotary, "attention_scaling", 1.0)
        return apply(keys.float(), keys.float(), cos / scale, sin / scale)[1]  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | Mapping[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the layers with the prefix in front of the text.

        Args:
            input_ids: `[B, S]`.
            attention_mask: `[B, S]` (with a cache: of all text so far), 0 on padding; or what the
                library makes of it, without the prefix's keys.
            position_ids: `[B, S]`, counted from the first text token; by default from the mask.
            past_key_values: cache of an earlier call.
            inputs_embeds: `[B, S, hidden]`, in the place of `input_ids`.
            use_cache: return a cache; by default what the configuration says.
            **kwargs: of the library's forward.
        """
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if recomputes(self):
            use_cache = use_cache and past_key_values is not None
        embeds = embed(self, input_ids, inputs_embeds)
        past_key_values = working_cache(self, past_key_values, use_cache)
        seen = text_length(past_key_values)
        if position_ids is None:
            position_ids = positions_of_text(attention_mask, seen, embeds)
            position_ids = position_ids.expand(len(embeds), -1)
        shown = prefix_length(self)
        masks = attention_mask
        if shown and not isinstance(attention_mask, Mapping):
            masks = self._text_masks(embeds, attention_mask, past_key_values, position_ids)
        cache = show_prefix(self, past_key_values, embeds)
        places = position_ids
        if self.learned_positions is not None:
            self.check_room(shown + seen + embeds.shape[1])
            places = position_ids + shown
        try:
            outputs = super().forward(  # type: ignore[misc]
                inputs_embeds=embeds,
                attention_mask=_extended(masks, shown),
                position_ids=places,
                past_key_values=cache,
                use_cache=use_cache,
                **kwargs | {"return_dict": True},
            )
        except RuntimeError as error:  # of keys that the mask is too wide for
            self._check_taken(cache, error)
            raise
        self._check_taken(cache)
        outputs.past_key_values = past_key_values if use_cache else None
        return outputs

    def check_room(self, tokens: int) -> None:
        """Refuse more tokens, those of the prefix among them, than there are learned positions.

        Raises:
            ModelError: with the numbers.
        """
        if self.learned_positions is not None and tokens > self.learned_positions:
            raise ModelError(
                f"{tokens:,} tokens, prefix included, are more than the {self.learned_positions:,} "
                f"positions that {self.config.model_type} has learned; use a shorter prefix, or "
                "shorter texts"
            )

    def _check_taken(self, cache: Cache | None, error: Exception | None = None) -> None:
        """See that the layers were given the prefix: with checkpointing, a few models drop it."""
        if isinstance(cache, PrefixedCache) and not cache.taken:
            raise ModelError(
                f"gradient checkpointing of {self.config.model_type} leaves the prefix out; "
                "train without --gradient-checkpointing"
            ) from error

    def _text_masks(
        self, embeds: Tensor, mask: Tensor | None, cache: Cache | None, position_ids: Tensor
    ) -> Any:
        """The library's masks of the text, by kind of layer where there are several kinds."""
        masks = create_masks_for_generate(
            config=self.config,
            inputs_embeds=embeds,
            attention_mask=mask,
            past_key_values=cache,
            position_ids=position_ids,
        )
        if not isinstance(masks, dict):
            return _written(masks, embeds, cache, 0)
        first = {kind: number for number, kind in reversed([*enumerate(self.config.layer_types)])}
        return {k: _written(m, embeds, cache, first.get(k, 0)) for k, m in masks.items()}

    def run_layers(
        self,
        hidden_states: Tensor,
        mask: Any,
        position_ids: Tensor,
        past_key_values: Cache,
        layers: slice = slice(None),
    ) -> Tensor:
        """As of `ChatGLM2Model`, for all layers at once: the library has no other way in."""
        if isinstance(mask, Mapping) and not hasattr(self.config, "layer_types"):
            mask = mask[SLIDING]  # all layers are of one kind
        outputs = super().forward(  # type: ignore[misc]
            inputs_embeds=hidden_states,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=True,
            return_dict=True,
        )
        return outputs.last_hidden_state  # type: ignore[no-any-return]


class NativeCausalLM(CausalLM):
    """What a causal language model of the library gets in front of its class."""

    _can_compile_fullgraph = False  # the prefix is noted on the cache

    @property
    def scoring_head(self) -> nn.Module:
        """`[hidden] -> [vocabulary]`, with whatever the library does to its logits."""
        return scoring_head(self.get_output_embeddings(), self.config)  # type: ignore[attr-defined]

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save as the library does.

        Raises:
            ModelError: there is a prefix, for which the library's folders have no place.
        """
        if self.base_model.prefix_encoder is not None:
            raise ModelError(
                "save_pretrained has no place for a prefix in a folder of the library; "
                "put it beside the base's weights with ptune merge"
            )
        super().save_pretrained(save_directory, **kwargs)


def prepare(model: PreTrainedModel) -> None:
    """Give a model of the library the place for a prefix; `native_probe` finds its shape.

    Args:
        model: of `AutoModelForCausalLM`.
    """
    decoder: Any = model.base_model
    _put_in_front(model, NativeCausalLM)
    _put_in_front(decoder, NativeDecoder)
    decoder.prefix_encoder = None
    decoder.prefix_enabled = True
    decoder.sliding_window = getattr(decoder.config, "sliding_window", None)
    for module in decoder.modules():
        if isinstance(module, GradientCheckpointingLayer):
            # The prefix cache stores nothing, so running a layer again gives the same keys.
            module._can_checkpoint_with_cache = True
        _without_chance(module)


def _without_chance(module: nn.Module) -> None:
    """Drop a frozen layer's dropout and jitter, which would only blur what the prefix learns."""
    if isinstance(module, nn.Dropout):
        module.p = 0.0
    for name, value in vars(module).items():
        if isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(module, name, 0.0)


def _put_in_front(module: nn.Module, ours: type) -> None:
    library = type(module)
    # Under its own name, by which the library knows how to save it and what its loss is.
    module.__class__ = type(library.__name__, (ours, library), {"__module__": library.__module__})


def _written(mask: Tensor | None, embeds: Tensor, cache: Cache | None, layer: int) -> Tensor:
    """A mask in full where the library leaves it to the kernel, which would count the prefix."""
    if mask is not None:
        return mask
    length = keys = embeds.shape[1]
    if cache is not None:
        keys, _ = cache.get_mask_sizes(length, layer)
    seen = torch.ones(1, 1, length, keys, dtype=torch.bool, device=embeds.device)
    return seen.tril(keys - length)


def _extended(masks: Any, prefix: int) -> Any:
    if isinstance(masks, Mapping):
        return {kind: extend_mask(mask, prefix) for kind, mask in masks.items()}
    return extend_mask(masks, prefix)
