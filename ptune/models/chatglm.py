"""ChatGLM-6B, the first generation: two-dimensional rotary positions and a prefix-LM mask.

Re-implemented from THUDM/ChatGLM-6B (`modeling_chatglm.py` beside the weights).  Module names equal
the keys of the official checkpoint.  Paper: GLM, https://arxiv.org/abs/2103.10360.

Shapes: `B` batch, `S` text tokens of this call, `P` prefix tokens, `K` all keys (prefix, cache and
text), `H` heads, `D` head dimension, `L` layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ptune.models.causal_lm import CausalLMForward
from ptune.models.prefix_encoder import PrefixShape, extend_mask, inject_prefix, prefix_length
from ptune.models.rotary import RotaryEmbedding, split_heads

# The original scales every residual by this, however many layers the model has.
RESIDUAL_SCALE = math.sqrt(2 * 28)


class ChatGLMConfig(PreTrainedConfig):
    """The official config.json of ChatGLM-6B, with its own key names."""

    model_type = "chatglm"
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
        kwargs.setdefault("tie_word_embeddings", True)
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            **kwargs,
        )


@dataclass
class TextState:
    """Where a row's text stands; kept on the cache between calls.

    Attributes:
        length: `[B]`, text tokens so far, padding not counted.
        mask_position: `[B]`, position of `[gMASK]`, which every token from `<sop>` on repeats.
        block: `[B]`, last block position; 0 while `<sop>` has not come.
    """

    length: Tensor
    mask_position: Tensor
    block: Tensor


def read_text(
    config: ChatGLMConfig, input_ids: Tensor, is_text: Tensor, state: TextState | None
) -> tuple[Tensor, Tensor, TextState]:
    """Derive positions and context from the ids, without waiting for the device.

    Args:
        config: for the ids of `[gMASK]`, `[MASK]` and `<sop>`.
        input_ids: `[B, S]`.
        is_text: `[B, S]` bool, False on padding.
        state: of the tokens before these, or None at the start.

    Returns:
        Position ids `[2, B, S]` (position, block position); `is_context` `[B, S]` bool, the tokens
        before `<sop>`, which see each other both ways; and the state after these tokens.
    """
    batch, length = input_ids.shape
    index = torch.arange(length, device=input_ids.device)
    if state is None:
        zeros = input_ids.new_zeros(batch)
        state = TextState(zeros, zeros, zeros)

    def first(token_id: int) -> tuple[Tensor, Tensor]:
        found = (input_ids == token_id) & is_text
        return found.any(dim=1), found.int().argmax(dim=1)

    # Text positions count from each row's first token that is not padding.
    running = is_text.long().cumsum(dim=1)
    position = (state.length[:, None] + running - 1).clamp(min=0)  # [B, S]

    in_answer = state.block > 0
    has_sop, sop_index = first(config.bos_token_id)
    context_end = torch.where(has_sop, sop_index, length)
    context_end = torch.where(in_answer, 0, context_end)
    is_context = (index < context_end[:, None]) & is_text

    has_gmask, gmask_index = first(config.gmask_token_id)
    has_mask, mask_index = first(config.mask_token_id)
    mask_index = torch.where(has_gmask, gmask_index, mask_index)
    mask_position = position.gather(1, mask_index[:, None]).squeeze(1)
    found = (has_gmask | has_mask) & ~in_answer
    mask_position = torch.where(found, mask_position, state.mask_position)

    block = (state.block[:, None] + index - context_end[:, None] + 1).clamp(min=0)
    block = torch.where(index < context_end[:, None], 0, block)
    position = torch.where(block > 0, mask_position[:, None], position)
    after = TextState(state.length + running[:, -1], mask_position, block[:, -1])
    return torch.stack([position, block]), is_context, after


def prefix_lm_mask(is_context: Tensor, attention_mask: Tensor | None, seen: int) -> Tensor | None:
    """Build the attention mask: causal, with the context visible to all.

    Args:
        is_context: `[B, S]` bool.
        attention_mask: `[B, seen + S]`, 0 on padding, or None without padding.
        seen: keys before this call's tokens (prefix and cache).

    Returns:
        Bool `[B, 1, S, seen + S]`, True where a query may look, or None when one query sees all.
    """
    batch, length = is_context.shape
    if length == 1 and attention_mask is None:
        return None
    device = is_context.device
    causal = torch.ones(length, seen + length, dtype=torch.bool, device=device).tril(seen)
    allowed = causal.expand(batch, -1, -1).clone()
    allowed[:, :, seen:] |= is_context[:, None, :]
    if attention_mask is not None:
        # A query always sees itself, so that no row of padding is empty and gives NaN.
        itself = torch.eye(length, dtype=torch.bool, device=device)
        allowed &= attention_mask[:, None, :].bool()
        allowed[:, :, seen:] |= itself
    return allowed[:, None]


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
    ) -> Tensor:
        """`[B, S, hidden]` to `[B, S, hidden]`; new keys and values go into `past_key_values`."""
        batch, length, hidden = hidden_states.shape
        fused = self.query_key_value(hidden_states).view(batch, length, self.num_heads, -1)
        query, key, value = split_heads(fused, *rotary)  # [B, H, S, D] each
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        implementation = self.config._attn_implementation
        attend = eager_attention
        if implementation != "eager":
            attend = ALL_ATTENTION_FUNCTIONS[implementation]
        context, _ = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.head_dim**-0.5,
            is_causal=False,
        )
        return self.dense(context.reshape(batch, length, hidden))  # type: ignore[no-any-return]


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
        attended = self.attention(normed, attention_mask, rotary, past_key_values)
        hidden_states = torch.add(attended, normed, alpha=RESIDUAL_SCALE)
        normed = self.post_attention_layernorm(hidden_states)
        return torch.add(self.mlp(normed), normed, alpha=RESIDUAL_SCALE)


class ChatGLMPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What the library wants to know of both classes below."""

    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GLMBlock"]
    _supports_sdpa = True
    _supports_attention_backend = True

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
        self.prefix_encoder: nn.Module | None = None
        self.prefix_enabled = True
        self.word_embeddings: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = RotaryEmbedding(config.hidden_size // (2 * config.num_attention_heads))
        self.layers = nn.ModuleList(GLMBlock(config, i) for i in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.word_embeddings = value

    def next_positions(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Where the first token of each answer stands.

        Args:
            input_ids: `[B, S]`, prompts with `[gMASK] <sop>`, padded at their end.
            attention_mask: `[B, S]`, 0 on padding.

        Returns:
            Position and block position, `[2, B, 1]`.
        """
        positions, _, _ = read_text(self.config, input_ids, attention_mask.bool(), None)
        last = (attention_mask.sum(dim=1) - 1)[None, :, None].expand(2, -1, 1)
        return positions.gather(2, last) + last.new_tensor([0, 1])[:, None, None]

    def advance_positions(self, position_ids: Tensor) -> None:
        """Go on to the next token of an answer, in place."""
        position_ids[1] += 1

    def decode(
        self, input_ids: Tensor, mask: Tensor, position_ids: Tensor, past_key_values: Cache
    ) -> Tensor:
        """Run the layers for one token of each answer; nothing here waits for the device.

        Args:
            input_ids: `[B, 1]`.
            mask: `[B, 1, 1, K]`, added to the scores: -inf for columns that a row does not see.
            position_ids: `[2, B, 1]`.
            past_key_values: holds prefix, prompt and answer so far.

        Returns:
            `[B, 1, hidden]`.
        """
        hidden_states = self.word_embeddings(input_ids)
        rotary = self.rotary_emb(position_ids, hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, rotary, past_key_values=past_key_values)
        return self.final_layernorm(hidden_states)  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """Run the layers.

        Args:
            input_ids: `[B, S]`, holding `[gMASK] <sop>` once; positions and mask follow from them.
            attention_mask: `[B, S]` (with a cache: of all text so far), 0 on padding at either end.
            position_ids: not looked at; `generate` passes those of a model with one position.
            past_key_values: cache of an earlier call; positions go on from it.
            use_cache: return a cache; by default what the configuration says.

        Returns:
            `last_hidden_state` `[B, S, hidden]` and the cache.
        """
        use_cache = self.config.use_cache if use_cache is None else use_cache
        hidden_states = self.word_embeddings(input_ids)
        length = input_ids.shape[1]
        state = getattr(past_key_values, "chatglm_text_state", None)
        past_key_values = inject_prefix(self, past_key_values, use_cache, hidden_states)

        if attention_mask is None:
            is_text = torch.ones_like(input_ids, dtype=torch.bool)
        else:
            is_text = attention_mask[:, -length:].bool()
        position_ids, is_context, state = read_text(self.config, input_ids, is_text, state)
        if use_cache and past_key_values is not None:
            past_key_values.chatglm_text_state = state

        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        mask = prefix_lm_mask(is_context, extend_mask(attention_mask, prefix_length(self)), seen)
        if mask is not None:
            # The kernels add masks to the scores; made here, all layers share one.
            mask = torch.zeros_like(mask, dtype=hidden_states.dtype).masked_fill_(~mask, -math.inf)
        rotary = self.rotary_emb(position_ids, hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, rotary, past_key_values=past_key_values)
        return BaseModelOutputWithPast(
            last_hidden_state=self.final_layernorm(hidden_states),
            past_key_values=past_key_values if use_cache else None,
        )


class ChatGLMForConditionalGeneration(CausalLMForward, ChatGLMPreTrainedModel, GenerationMixin):
    """ChatGLM-6B with its language-model head, tied to the word embeddings."""

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings
