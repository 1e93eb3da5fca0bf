"""ChatGLM-6B, the first generation: two-dimensional rotary positions and a prefix-LM mask.

Re-implemented from THUDM/ChatGLM-6B (`modeling_chatglm.py` beside the weights).  Module names equal
the keys of the official checkpoint.  Paper: GLM, https://arxiv.org/abs/2103.10360.

Shapes: `B` batch, `S` text tokens of this call, `P` prefix tokens, `K` all keys (prefix, cache and
text), `H` heads, `D` head dimension, `L` layers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedConfig, PreTrainedModel, initialization
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ptune.device.linear import take_fast_kernels
from ptune.errors import ModelError
from ptune.models.causal_lm import CausalLM
from ptune.models.decoder_inputs import check_arguments, embed, working_cache
from ptune.models.official_config import OfficialConfig
from ptune.models.prefix_encoder import (
    PrefixShape,
    build_prefix_encoder,
    extend_mask,
    prefix_length,
    show_prefix,
    text_length,
)
from ptune.models.rotary import RotaryEmbedding, split_heads
from ptune.models.text_positions import continue_text, read_text, remember_text, text_index

_ARGUMENTS = frozenset({"output_attentions", "output_hidden_states"})
# The original scales every residual by this, however many layers the model has.
RESIDUAL_SCALE = math.sqrt(2 * 28)


class ChatGLMConfig(OfficialConfig, PreTrainedConfig):  # type: ignore[misc]
    """The official config.json of ChatGLM-6B, with its own key names."""

    released_as = "ChatGLM-6B"
    required = ()
    foreign = "padded_vocab_size"
    attribute_map = {
        "num_hidden_layers": "num_layers",
        "max_position_embeddings": "max_sequence_length",
        "intermediate_size": "inner_hidden_size",
    }

    def __init__(
        self,
        vocab_size: int = 130528,
        hidden_size: int = 4096,
        inner_hidden_size: int = 16384,
        num_layers: int = 28,
        num_attention_heads: int = 32,
        layernorm_epsilon: float = 1e-5,
        max_sequence_length: int = 2048,
        mask_token_id: int = 130000,
        gmask_token_id: int = 130001,
        bos_token_id: int = 130004,
        eos_token_id: int = 130005,
        pad_token_id: int = 3,
        use_cache: bool = True,
        pre_seq_len: int | None = None,
        prefix_projection: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.inner_hidden_size = inner_hidden_size
        self.num_layers = num_layers
        self.num_attention_heads = num_attention_heads
        self.layernorm_epsilon = layernorm_epsilon
        self.max_sequence_length = max_sequence_length
        self.mask_token_id = mask_token_id
        self.gmask_token_id = gmask_token_id
        self.use_cache = use_cache
        self.pre_seq_len = pre_seq_len
        self.prefix_projection = prefix_projection
        kwargs.setdefault("tie_word_embeddings", True)
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            **kwargs,
        )

    @classmethod
    def check(cls, config_dict: dict[str, Any]) -> None:
        """As of `OfficialConfig`, with the one-dimensional positions of no released model."""
        super().check(config_dict)
        if not config_dict.get("position_encoding_2d", True):
            raise ModelError(
                "position_encoding_2d false in config.json is no released ChatGLM-6B; "
                "use a folder of THUDM/chatglm-6b"
            )


def prefix_lm_mask(
    is_context: Tensor, attention_mask: Tensor | None, seen: int, keys: int
) -> Tensor | None:
    """Build the attention mask: causal, with the context visible to all.

    Args:
        is_context: `[B, S]` bool.
        attention_mask: `[B, seen + S]`, 0 on padding, or None without padding.
        seen: keys before this call's tokens (prefix and cache).
        keys: `K`, at least `seen + S`; a cache of fixed size has more, which nobody sees.

    Returns:
        Bool `[B, 1, S, K]`, True where a query may look, or None when one query sees all.
    """
    batch, length = is_context.shape
    if length == 1 and attention_mask is None and keys == seen + 1:
        return None
    device = is_context.device
    causal = torch.ones(length, keys, dtype=torch.bool, device=device).tril(seen)
    allowed = causal.expand(batch, -1, -1).clone()
    here = slice(seen, seen + length)
    allowed[:, :, here] |= is_context[:, None, :]
    if attention_mask is not None:
        # A query always sees itself, so that no row of padding is empty and gives NaN.
        itself = torch.eye(length, dtype=torch.bool, device=device)
        allowed[:, :, : here.stop] &= attention_mask[:, None, :].bool()
        allowed[:, :, here] |= itself
    return allowed[:, None]


def _two_rows(position_ids: Tensor, hidden_states: Tensor) -> Tensor:
    """Take the original's `[B, 2, S]` to `[2, B, S]`."""
    batch, length, _ = hidden_states.shape
    if position_ids.shape != (batch, 2, length):
        raise ModelError(
            f"position_ids has shape {list(position_ids.shape)}, but ChatGLM-6B has a position and "
            f"a block position for each token; leave it out, or pass [{batch}, 2, {length}]"
        )
    return position_ids.transpose(0, 1)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Plain attention, `[B, H, S, D]` to `[B, S, H, D]`, for `attn_implementation="eager"`."""
    scores = query @ key.transpose(2, 3) * scaling  # [B, H, S, K]
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SelfAttention(nn.Module):
    """Multi-head attention with a fused, per-head interleaved query/key/value projection."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        past_key_values: Cache | None,
    ) -> tuple[Tensor, Tensor | None]:
        """`[B, S, hidden]` to `[B, S, hidden]`; new keys and values go into `past_key_values`.

        Returns:
            The new hidden states, and `[B, H, S, K]` weights where the implementation has them.
        """
        batch, length, hidden = hidden_states.shape
        fused = self.query_key_value(hidden_states).view(batch, length, self.num_heads, -1)
        query, key, value = split_heads(fused, *rotary)  # [B, H, S, D] each
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        implementation = self.config._attn_implementation
        attend = eager_attention
        if implementation != "eager":
            attend = ALL_ATTENTION_FUNCTIONS[implementation]
        context, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.head_dim**-0.5,
            is_causal=False,
        )
        return self.dense(context.reshape(batch, length, hidden)), weights


class MLP(nn.Module):
    """Two linear layers around GELU in its tanh form."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[B, S, hidden]` to `[B, S, hidden]`."""
        inner = F.gelu(self.dense_h_to_4h(hidden_states), approximate="tanh")
        return self.dense_4h_to_h(inner)  # type: ignore[no-any-return]


class GLMBlock(GradientCheckpointingLayer):
    """A layer; its residual is the normalized input scaled up, not the input itself."""

    # The prefix cache stores nothing, so running a layer again gives the same keys.
    _can_checkpoint_with_cache = True

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.attention = SelfAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """`[B, S, hidden]` to `[B, S, hidden]`."""
        normed = self.input_layernorm(hidden_states)
        attended, _ = self.attention(normed, attention_mask, rotary, past_key_values)
        hidden_states = torch.add(attended, normed, alpha=RESIDUAL_SCALE)
        normed = self.post_attention_layernorm(hidden_states)
        return torch.add(self.mlp(normed), normed, alpha=RESIDUAL_SCALE)


class ChatGLMPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What the library wants to know of both classes below."""

    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": GLMBlock, "attentions": SelfAttention}
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RotaryEmbedding):
            initialization.copy_(module.inv_freq, module.frequencies())

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # the library looks for its own wording in this file, which changes with it


class ChatGLMModel(ChatGLMPreTrainedModel):
    """The decoder without its head; holds the prefix when there is one."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.prefix_shape = PrefixShape(
            num_layers=config.num_layers,
            num_kv_heads=config.num_attention_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            hidden_size=config.hidden_size,
            projection_input=config.hidden_size,
        )
        self.word_embeddings: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = RotaryEmbedding(config.hidden_size // (2 * config.num_attention_heads))
        self.layers = nn.ModuleList(GLMBlock(config, i) for i in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.gradient_checkpointing = False
        # The last: a model's precision is that of its first weight.
        self.prefix_encoder: nn.Module | None = build_prefix_encoder(self.prefix_shape, config)
        self.prefix_enabled = True
        if self.prefix_encoder is not None:
            self._keep_in_fp32_modules_strict = {"prefix_encoder"}
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.word_embeddings = value

    def read_prompts(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Where the tokens of prompts stand, and how much of each is seen by all of it.

        Args:
            input_ids: `[B, S]`, prompts with `[gMASK] <sop>`, padded at their end.
            attention_mask: `[B, S]`, 0 on padding.

        Returns:
            Position and block position, `[2, B, S]`, and the tokens before `<sop>`, `[B]`.
        """
        is_text = attention_mask.bool()
        index = text_index(input_ids.shape[1], 0, attention_mask, input_ids)
        positions = read_text(self.config, input_ids, index, is_text)
        return positions, ((positions[1] == 0) & is_text).sum(dim=1)

    learned_positions = None
    sliding_window = None

    @property
    def stages(self) -> int:
        """Parts in which `run_layers` can be run."""
        return len(self.layers)

    @property
    def context_end(self) -> list[int]:
        """Ids that must stand behind a context: `[gMASK] <sop>`."""
        return [self.config.gmask_token_id, self.config.bos_token_id]

    def positions_in_front(self, input_ids: Tensor) -> Tensor:
        """Where the tokens of a context stand in front of another, `[B, 2, S]`.

        Args:
            input_ids: `[B, S]`, with `[gMASK] <sop>`, which stand behind; block positions stay.
        """
        positions, _ = self.read_prompts(input_ids, torch.ones_like(input_ids))
        before = input_ids.shape[1] - len(self.context_end)
        return torch.stack([positions[0] - before, positions[1]], dim=1)

    def advance_positions(self, position_ids: Tensor) -> None:
        """Go on to the next token of an answer, in place."""
        position_ids[1] += 1

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
            position_ids: `[2, B, S]`.
            past_key_values: holds prefix, prompt and answer so far.
            layers: which of them; the last is followed by the final norm.

        Returns:
            `[B, S, hidden]`.
        """
        rotary = self.rotary_emb(position_ids, hidden_states.dtype)
        for layer in self.layers[layers]:
            hidden_states = layer(hidden_states, mask, rotary, past_key_values=past_key_values)
        if layers.stop in (None, len(self.layers)):
            hidden_states = self.final_layernorm(hidden_states)
        return hidden_states

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
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
        """Run the layers.

        Args:
            input_ids: `[B, S]`, holding `[gMASK] <sop>` once; positions and mask follow from them.
            attention_mask: `[B, S]` (with a cache: of all text so far), 0 on padding at either end.
            position_ids: `[B, 2, S]`, position and block position, in the place of those that the
                ids tell; tokens whose block position is 0 are seen by all.
            past_key_values: cache of an earlier call; positions go on from it.
            inputs_embeds: `[B, S, hidden]` in the place of `input_ids`, with `position_ids`.
            use_cache: return a cache; by default what the configuration says.
            **kwargs: `output_hidden_states`, `output_attentions` and `return_dict`.

        Returns:
            `last_hidden_state` `[B, S, hidden]` and the cache.

        Raises:
            ModelError: positions or a mask of another shape, a cache that cannot be gone on from.
        """
        check_arguments(self, kwargs, _ARGUMENTS)
        hidden_states = embed(self, input_ids, inputs_embeds)
        seen, length = text_length(past_key_values), hidden_states.shape[1]
        past_key_values = working_cache(self, past_key_values, bool(use_cache))
        cache = show_prefix(self, past_key_values, hidden_states)

        index = text_index(length, seen, attention_mask, hidden_states)
        is_text = torch.ones_like(index, dtype=torch.bool)
        if attention_mask is not None:
            is_text = attention_mask[:, seen:].bool()
        if position_ids is not None:
            position_ids = _two_rows(position_ids, hidden_states)
        elif seen:
            position_ids = continue_text(past_key_values, index, seen)
        else:
            position_ids = read_text(self.config, input_ids, index, is_text)
        if past_key_values is not None and not seen:
            remember_text(past_key_values, position_ids, index, is_text)

        before = prefix_length(self) + seen
        keys = before + length if cache is None else cache.get_mask_sizes(length, 0)[0]
        is_context = (position_ids[1] == 0) & is_text
        mask = prefix_lm_mask(is_context, extend_mask(attention_mask, before - seen), before, keys)
        if mask is not None:
            # The kernels add masks to the scores; made here, all layers share one.
            mask = torch.zeros_like(mask, dtype=hidden_states.dtype).masked_fill_(~mask, -math.inf)
        rotary = self.rotary_emb(position_ids, hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, rotary, past_key_values=cache)
        return BaseModelOutputWithPast(
            last_hidden_state=self.final_layernorm(hidden_states),
            past_key_values=past_key_values if use_cache else None,
        )


class ChatGLMForConditionalGeneration(CausalLM, ChatGLMPreTrainedModel, GenerationMixin):
    """ChatGLM-6B with its language-model head, tied to the word embeddings."""

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        take_fast_kernels(self)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """What `generate` passes to the forward: no embeddings, which tell no positions."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **kwargs)
        return inputs

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        super()._validate_model_kwargs(model_kwargs)
        if model_kwargs.get("position_ids") is not None:  # it would count both up, one by one
            raise ModelError(
                "generate takes no position_ids for ChatGLM-6B, whose positions follow from the "
                "ids; leave them out"
            )

    def _prepare_position_ids_for_generation(self, *args: Any) -> None:
        """None of the library's: it counts one position for each token."""

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None, **kwargs: Any) -> Tensor | None:
        """Leave the mask to the forward, which has the ids, for a cache of fixed size as well."""
        return attention_mask
