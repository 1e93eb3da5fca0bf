"""The later generations on transformers' own `glm` model, which computes exactly the same.

They are ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B.  The decoder is given the prefix; everything else is
the library's.

Shapes: `B` batch, `S` text tokens of this call, `P` prefix tokens, `K` all keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, GlmModel, GlmPreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb
from transformers.utils import TransformersKwargs, can_return_tuple

from ptune.device.linear import take_fast_kernels
from ptune.models.causal_lm import CausalLM
from ptune.models.causal_text import CausalText, positions_of_text
from ptune.models.chatglm2_layout import ChatGLM2Config, register_layout
from ptune.models.decoder_inputs import check_arguments, embed, working_cache
from ptune.models.prefix_encoder import (
    PrefixShape,
    build_prefix_encoder,
    extend_mask,
    prefix_length,
    show_prefix,
    text_length,
)

_ARGUMENTS = frozenset(TransformersKwargs.__annotations__)


class ChatGLM2Model(CausalText, GlmModel):  # type: ignore[misc]
    """The library's decoder; holds the prefix when there is one."""

    config_class = ChatGLM2Config
    _can_compile_fullgraph = False  # the prefix is noted on the cache
    _keys_to_ignore_on_load_unexpected = [r"rotary_pos_emb\.inv_freq"]

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__(config)
        width = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        self.prefix_shape = PrefixShape(
            num_layers=config.num_hidden_layers,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            hidden_size=config.hidden_size,
            projection_input=width,
        )
        self.prefix_encoder = build_prefix_encoder(self.prefix_shape, config)
        self.prefix_enabled = True
        if self.prefix_encoder is not None:
            self._keep_in_fp32_modules_strict = {"prefix_encoder"}
        for layer in self.layers:
            # The prefix cache stores nothing, so running a layer again gives the same keys.
            layer._can_checkpoint_with_cache = True
        self.post_init()

    @property
    def stages(self) -> int:
        """Parts in which `run_layers` can be run."""
        return len(self.layers)

    def turn_keys(self, keys: Tensor, by: int) -> Tensor:
        """Move keys to other positions: R(by), in float32.

        Args:
            keys: `[B, G, S, D]`, as the KV cache has them.
            by: added to the position of each.
        """
        position = torch.full((1, 1), by, device=keys.device)
        cos, sin = self.rotary_emb(keys.float(), position_ids=position)
        return apply_rotary_pos_emb(keys.float(), keys.float(), cos, sin)[1]  # type: ignore[no-any-return]

    def run_layers(
        self,
        hidden_states: Tensor,
        mask: Tensor,
        position_ids: Tensor,
        past_key_values: Cache,
        layers: slice = slice(None),
    ) -> Tensor:
        """Run some layers of a decode step or a prefill; nothing here waits for the device.

        Args:
            hidden_states: `[B, S, hidden]`, of the layer before, or embedded ids.
            mask: `[B, 1, S, K]`, added to the scores: -inf for keys that a query does not see.
            position_ids: `[B, S]`.
            past_key_values: holds prefix, prompt and answer so far.
            layers: which of them; the last is followed by the final norm.

        Returns:
            `[B, S, hidden]`.
        """
        rotary = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer in self.layers[layers]:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=rotary,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=True,
            )
        if layers.stop in (None, len(self.layers)):
            hidden_states = self.norm(hidden_states)
        return hidden_states

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the layers with the prefix in front of the text.

        Args:
            input_ids: `[B, S]`.
            attention_mask: `[B, S]` (with a cache: of all text so far), 0 on padding at either end;
                or `[B, 1, S, K]` without the prefix's keys.
            position_ids: `[B, S]`, counted from the first text token; by default from the mask.
                The prefix has no positions.
            past_key_values: cache of an earlier call.
            inputs_embeds: `[B, S, hidden]`, in the place of `input_ids`.
            use_cache: return a cache; by default what the configuration says.
            **kwargs: what the library's forward knows (`TransformersKwargs`), and `return_dict`.
        """
        check_arguments(self, kwargs, _ARGUMENTS)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training and past_key_values is None:
            use_cache = False
        embeds = embed(self, input_ids, inputs_embeds)
        past_key_values = working_cache(self, past_key_values, use_cache)
        if position_ids is None:
            seen = text_length(past_key_values)
            position_ids = positions_of_text(attention_mask, seen, embeds)
        elif attention_mask is None and past_key_values is None and prefix_length(self):
            # Texts packed into a row, told apart by their positions; the library looks for them
            # only where it sees no cache, and the prefix comes as one.
            attention_mask = create_causal_mask(self.config, embeds, None, None, position_ids)
        cache = show_prefix(self, past_key_values, embeds)
        outputs = super().forward(
            inputs_embeds=embeds,
            attention_mask=extend_mask(attention_mask, prefix_length(self)),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        return BaseModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class ChatGLM2ForConditionalGeneration(CausalLM, GlmPreTrainedModel, GenerationMixin):
    """ChatGLM2-6B, ChatGLM3-6B or GLM-4-9B with its language-model head."""

    config_class = ChatGLM2Config
    _can_compile_fullgraph = ChatGLM2Model._can_compile_fullgraph
    _keys_to_ignore_on_load_unexpected = ChatGLM2Model._keys_to_ignore_on_load_unexpected

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__(config)
        self.model = ChatGLM2Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        take_fast_kernels(self)
        self.post_init()


register_layout(ChatGLM2ForConditionalGeneration.__name__)
register_layout(ChatGLM2Model.__name__)
