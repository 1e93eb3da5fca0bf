"""Official settings and weights of the later generations, under the names of transformers' `glm`.

Official names and layout: THUDM/chatglm2-6b, THUDM/chatglm3-6b and THUDM/glm-4-9b
(`configuration_chatglm.py` and `modeling_chatglm.py` beside the weights).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GlmConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from ptune.base.folder import Generation, named_generation
from ptune.errors import ModelError
from ptune.models.official_config import OfficialConfig

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
_PARTS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]

# What the library's `glm` model is built as; an official config that differs is another model.
_FIXED_SETTINGS = {
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "post_layer_norm": True,
    "rmsnorm": True,
    "tie_word_embeddings": False,
}


class ChatGLM2Config(OfficialConfig, GlmConfig):  # type: ignore[misc]
    """The official config.json of a later generation; the library's names work, too."""

    attribute_map = {
        "vocab_size": "padded_vocab_size",
        "intermediate_size": "ffn_hidden_size",
        "num_hidden_layers": "num_layers",
        "head_dim": "kv_channels",
        "rms_norm_eps": "layernorm_epsilon",
        "max_position_embeddings": "seq_length",
        "attention_bias": "add_qkv_bias",
    }
    released_as = "ChatGLM2, ChatGLM3 or GLM-4"
    required = (
        *("padded_vocab_size", "hidden_size", "ffn_hidden_size", "num_layers", "kv_channels"),
        *("num_attention_heads", "multi_query_group_num", "layernorm_epsilon", "seq_length"),
    )
    foreign = "inner_hidden_size"

    def __init__(self, **settings: Any) -> None:
        for name, value in _FIXED_SETTINGS.items():
            if settings.get(name, value) != value:
                raise ModelError(
                    f"{name} {settings[name]} in config.json is not ChatGLM2, ChatGLM3 or GLM-4 "
                    f"(all have {value}); use a folder of one of them"
                )
        for ours, official in self.attribute_map.items():
            if ours in settings:
                settings.setdefault(official, settings.pop(ours))
        if _generation_of(settings) is Generation.GLM4:
            settings.setdefault("bos_token_id", None)  # nothing begins a text
        settings = _DEFAULTS | {k: v for k, v in settings.items() if k not in self.attribute_map}
        grouped = settings["multi_query_attention"]
        heads = "multi_query_group_num" if grouped else "num_attention_heads"
        settings["rope_parameters"] = settings.get("rope_parameters") or _rotation(settings)
        settings |= {"num_key_value_heads": settings[heads], "attention_dropout": 0.0}
        for ours, official in self.attribute_map.items():
            settings[ours] = settings.pop(official)
        super().__init__(**settings)


def _rotation(settings: dict[str, Any]) -> dict[str, Any]:
    """What `rope_ratio` does.

    In ChatGLM2 it divides the positions, as linear scaling does; in ChatGLM3 and GLM-4 it
    multiplies the base of the frequencies.

    Raises:
        ModelError: nothing says which of the two the model is.
    """
    rotation = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    if (ratio := settings["rope_ratio"]) == 1:
        return rotation
    generation = _generation_of(settings)
    if generation is Generation.CHATGLM2:
        return rotation | {"rope_type": "linear", "factor": float(ratio)}
    if generation in (Generation.CHATGLM3, Generation.GLM4):
        return rotation | {"rope_theta": 10000.0 * ratio}
    raise ModelError(
        f"rope_ratio {ratio} in config.json divides positions in ChatGLM2 and multiplies the base "
        "in ChatGLM3 and GLM-4, and neither prompt_format nor _name_or_path says which it is; "
        "load the folder with ptune.load_model"
    )


def _generation_of(settings: dict[str, Any]) -> Generation | None:
    """The generation that settings name; None where they do not."""
    if stated := settings.get("prompt_format"):
        return Generation(stated)
    return named_generation(settings.get("released_name") or settings.get("_name_or_path") or "")


# Those of the official `ChatGLMConfig`, and the ids that the official tokenizer has.
_DEFAULTS: dict[str, Any] = {
    "padded_vocab_size": 65024,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "num_layers": 28,
    "num_attention_heads": 32,
    "kv_channels": 128,
    "multi_query_attention": False,
    "multi_query_group_num": 1,
    "layernorm_epsilon": 1e-5,
    "seq_length": 2048,
    "add_qkv_bias": False,
    "rope_ratio": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "pre_seq_len": None,
    "prefix_projection": False,
}


def from_official(name: str, tensor: Tensor, config: ChatGLM2Config) -> dict[str, Tensor]:
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
        parts = zip(_PARTS, _split_fused(tensor, config), strict=True)
        return {f"model.layers.{layer}.{part}.{kind}": t for part, t in parts}
    if inner in _LAYER_RENAMES:
        return {f"model.layers.{layer}.{_LAYER_RENAMES[inner]}.{kind}": tensor}
    return {}


def _split_fused(tensor: Tensor, config: ChatGLM2Config) -> Sequence[Tensor]:
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


def _fuse(parts: Sequence[Tensor], config: ChatGLM2Config) -> Tensor:
    """Undo `_split_fused`."""
    if config.multi_query_attention:
        return torch.cat(list(parts))
    heads, rest = config.num_attention_heads, parts[0].shape[1:]
    by_head = [part.reshape(heads, config.head_dim, *rest) for part in parts]
    return torch.stack(by_head, dim=1).flatten(0, 2)


class _Split(ConversionOps):  # type: ignore[misc]
    """`_split_fused` for the library's loading."""

    def convert(
        self, input_dict: dict[str, Any], target_patterns: list[str], config: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        ((fused,),) = input_dict.values()
        parts = zip(target_patterns, _split_fused(fused, config), strict=True)
        return {name: part.contiguous() for name, part in parts}

    @property
    def reverse_op(self) -> ConversionOps:
        return _Fuse()


class _Fuse(ConversionOps):  # type: ignore[misc]
    """`_fuse` for the library's saving."""

    def convert(
        self, input_dict: dict[str, Any], target_patterns: list[str], config: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        by_pattern = {name: tensors[0] for name, tensors in input_dict.items()}
        return {target_patterns[0]: _fuse([by_pattern[part] for part in _PARTS], config)}

    @property
    def reverse_op(self) -> ConversionOps:
        return _Split()


def register_layout(class_name: str) -> None:
    """Let a model class's `from_pretrained` and `save_pretrained` read and write official names."""
    outer = {f"transformer.{official}": f"model.{ours}" for official, ours in _RENAMES.items()}
    outer |= {"transformer.output_layer": "lm_head"}
    outer |= {"transformer.prefix_encoder": "model.prefix_encoder"}
    outer |= {"transformer.encoder.layers": "model.layers"}
    inner = {official: ours for official, ours in _LAYER_RENAMES.items() if official != ours}
    renamings = [WeightRenaming(*names) for names in (outer | inner).items()]
    fused = WeightConverter(_FUSED, list(_PARTS), [_Split()])
    register_checkpoint_conversion_mapping(class_name, [*renamings, fused], overwrite=True)
