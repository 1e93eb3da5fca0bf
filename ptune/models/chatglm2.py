"""ChatGLM2-6B and ChatGLM3-6B on transformers' own `glm` model, which computes exactly the same.

The configuration is translated, weights are renamed on load and back on save, and the decoder is
given the prefix; everything else is the library's.  Official key names and layout:
THUDM/chatglm2-6b and THUDM/chatglm3-6b (`modeling_chatglm.py` beside the weights).

Shapes: `B` batch, `S` text tokens of this call, `P` prefix tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GlmConfig, GlmForCausalLM, GlmModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from ptune.base.folder import Generation
from ptune.models.causal_lm import CausalLMForward
from ptune.models.prefix_encoder import PrefixShape, extend_mask, inject_prefix, prefix_length

# Official name (after `transformer.`), the library's name (after `model.`), in layer-free form.
_RENAMES = {
    "embedding.word_embeddings": "embed_tokens",
    "encoder.final_layernorm": "norm",
}
_LAYER_RENAMES = {
    "self_attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.gate_up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
}
_FUSED = "self_attention.query_key_value"


def translate_config(official: dict[str, Any], generation: Generation) -> GlmConfig:
    """Turn a checked config.json of ChatGLM2 or 3 into the library's configuration.

    Args:
        official: config.json.
        generation: `rope_ratio` divides the positions in ChatGLM2, as linear scaling does; in
            ChatGLM3, it multiplies the base of the frequencies.
    """
    heads = official["num_attention_heads"]
    grouped = official.get("multi_query_attention", False)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    ratio = official.get("rope_ratio", 1)
    if generation is Generation.CHATGLM2:
        rope |= {"rope_type": "linear", "factor": float(ratio)}
    else:
        rope["rope_theta"] *= ratio
    end = official.get("eos_token_id")
    return GlmConfig(
        vocab_size=official["padded_vocab_size"],
        hidden_size=official["hidden_size"],
        intermediate_size=official["ffn_hidden_size"],
        num_hidden_layers=official["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=official["multi_query_group_num"] if grouped else heads,
        head_dim=official["kv_channels"],
        rms_norm_eps=official["layernorm_epsilon"],
        max_position_embeddings=official["seq_length"],
        attention_bias=official.get("add_qkv_bias", False),
        attention_dropout=0.0,
        tie_word_embeddings=False,
        rope_parameters=rope | {"partial_rotary_factor": 0.5},
        bos_token_id=1,
        eos_token_id=2 if end is None else end,
        pad_token_id=official.get("pad_token_id") or 0,
        use_cache=official.get("use_cache", True),
        multi_query_attention=grouped,
    )


def from_official(name: str, tensor: Tensor, config: GlmConfig) -> dict[str, Tensor]:
    """Rename one official tensor, splitting the fused query/key/value.

    Returns:
        The library's names and tensors; empty for a name that is no weight of the model.
    """
    if name == "transformer.output_layer.weight":
        return {"lm_head.weight": tensor}
    path, _, kind = name.removeprefix("transformer.").rpartition(".")
    if path in _RENAMES:
        return {f"model.{_RENAMES[path]}.{kind}": tensor}
    steps = path.split(".", 3)
    if steps[:2] != ["encoder", "layers"] or len(steps) < 4:
        return {}
    layer, inner = steps[2], steps[3]
    if inner == _FUSED:
        at = f"model.layers.{layer}.self_attn."
        parts = zip("qkv", _split_fused(tensor, config), strict=True)
        return {f"{at}{part}_proj.{kind}": t for part, t in parts}
    if inner in _LAYER_RENAMES:
        return {f"model.layers.{layer}.{_LAYER_RENAMES[inner]}.{kind}": tensor}
    return {}


def _split_fused(tensor: Tensor, config: GlmConfig) -> Sequence[Tensor]:
    """Take query, key and value rows out of one weight or bias.

    With shared key/value heads they stand one after the other; with a key and a value for each
    query head, head by head.
    """
    if config.multi_query_attention:
        query = config.num_attention_heads * config.head_dim
        key = config.num_key_value_heads * config.head_dim
        return torch.split(tensor, [query, key, key])
    heads, rest = config.num_attention_heads, tensor.shape[1:]
    by_head = tensor.reshape(heads, 3, config.head_dim, *rest)
    return [part.flatten(0, 1) for part in by_head.unbind(1)]


def _fuse(parts: Sequence[Tensor], config: GlmConfig) -> Tensor:
    """Undo `_split_fused`."""
    if config.multi_query_attention:
        return torch.cat(list(parts))
    heads, rest = config.num_attention_heads, parts[0].shape[1:]
    by_head = [part.reshape(heads, config.head_dim, *rest) for part in parts]
    return torch.stack(by_head, dim=1).flatten(0, 2)


def to_official(state: dict[str, Tensor], config: GlmConfig) -> dict[str, Tensor]:
    """Rename a state dict of `ChatGLM2ForConditionalGeneration` back to official keys."""
    outer = {ours: official for official, ours in _RENAMES.items()}
    inner = {ours: official for official, ours in _LAYER_RENAMES.items()}
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        path, _, kind = name.removeprefix("model.").rpartition(".")
        parts = path.split(".", 2)
        if name == "lm_head.weight":
            out["transformer.output_layer.weight"] = tensor
        elif path in outer:
            out[f"transformer.{outer[path]}.{kind}"] = tensor
        elif parts[0] != "layers":
            out[f"transformer.{path}.{kind}"] = tensor
        elif parts[2] in inner:
            out[f"transformer.encoder.layers.{parts[1]}.{inner[parts[2]]}.{kind}"] = tensor
        elif parts[2] == "self_attn.q_proj":
            at = f"model.layers.{parts[1]}.self_attn."
            fused = _fuse([state[f"{at}{part}_proj.{kind}"] for part in "qkv"], config)
            out[f"transformer.encoder.layers.{parts[1]}.{_FUSED}.{kind}"] = fused
    return out


class ChatGLM2Model(GlmModel):  # type: ignore[misc]
    """The library's decoder; holds the prefix when there is one."""

    def __init__(self, config: GlmConfig) -> None:
        super().__init__(config)
        width = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        self.prefix_shape = PrefixShape(
            num_layers=config.num_hidden_layers,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            hidden_size=config.hidden_size,
            projection_input=width,
        )
        self.prefix_encoder = None
        self.prefix_enabled = True
        for layer in self.layers:
            # The prefix cache stores nothing, so running a layer again gives the same keys.
            layer._can_checkpoint_with_cache = True

    def next_positions(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Where the first token of each answer stands, `[B, 1]`.

        Args:
            input_ids: `[B, S]`, prompts, padded at their end.
            attention_mask: `[B, S]`, 0 on padding.
        """
        return attention_mask.sum(dim=1, keepdim=True)

    def advance_positions(self, position_ids: Tensor) -> None:
        """Go on to the next token of an answer, in place."""
        position_ids += 1

    def decode(
        self, input_ids: Tensor, mask: Tensor, position_ids: Tensor, past_key_values: Cache
    ) -> Tensor:
        """Run the layers for one token of each answer; nothing here waits for the device.

        Args:
            input_ids: `[B, 1]`.
            mask: `[B, 1, 1, K]`, added to the scores: -inf for columns that a row does not see.
            position_ids: `[B, 1]`.
            past_key_values: holds prefix, prompt and answer so far.

        Returns:
            `[B, 1, hidden]`.
        """
        outputs = super().forward(
            inputs_embeds=self.embed_tokens(input_ids),
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=True,
        )
        hidden: Tensor = outputs.last_hidden_state
        return hidden

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the layers with the prefix in front of the text.

        Args:
            input_ids: `[B, S]`.
            attention_mask: `[B, S]` (with a cache: of all text so far), 0 on padding at either end.
            position_ids: `[B, S]`, counted from the first text token; by default from the mask.
                The prefix has no positions.
            past_key_values: cache of an earlier call.
            use_cache: return a cache; by default what the configuration says.
            **kwargs: for the library's forward.
        """
        use_cache = self.config.use_cache if use_cache is None else use_cache
        embeds = self.embed_tokens(input_ids)
        past_key_values = inject_prefix(self, past_key_values, use_cache, embeds)
        prefix, length = prefix_length(self), input_ids.shape[1]
        if position_ids is None:
            position_ids = self._text_positions(attention_mask, past_key_values, prefix, length)
        outputs = super().forward(
            inputs_embeds=embeds,
            attention_mask=extend_mask(attention_mask, prefix),
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        cache = outputs.past_key_values if use_cache else None
        return BaseModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state, past_key_values=cache
        )

    def _text_positions(
        self, attention_mask: Tensor | None, cache: Cache | None, prefix: int, length: int
    ) -> Tensor:
        if attention_mask is not None:
            return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -length:]
        seen = cache.get_seq_length() - prefix if cache is not None else 0
        return torch.arange(seen, seen + length, device=self.device)[None]


class ChatGLM2ForConditionalGeneration(CausalLMForward, GlmForCausalLM):  # type: ignore[misc]
    """ChatGLM2-6B or ChatGLM3-6B with its language-model head."""

    def __init__(self, config: GlmConfig, official_config: dict[str, Any]) -> None:
        super().__init__(config)
        self.model = ChatGLM2Model(config)
        self.official_config = official_config
        self.post_init()

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save in the official layout, so that `load_model` and the original code read it."""
        state = to_official(self.state_dict(), self.config)
        super().save_pretrained(save_directory, state_dict=state, **kwargs)
        names = ("pre_seq_len", "prefix_projection")
        prefix = {name: getattr(self.config, name) for name in names if hasattr(self.config, name)}
        dtype = str(self.dtype).removeprefix("torch.")
        config = self.official_config | prefix | {"torch_dtype": dtype}
        text = json.dumps(config, ensure_ascii=False, indent=2)
        (Path(save_directory) / "config.json").write_text(text + "\n", encoding="utf-8")
