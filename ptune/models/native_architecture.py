"""The numbers of a model, and of a LoRA beside it, that memory depends on; from config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from ptune.base.architecture import Architecture
from ptune.base.folder import BaseModel, Generation
from ptune.base.native import is_native
from ptune.device.memory import Lora
from ptune.models.lora import find_targets, linear_layers
from ptune.models.native_build import empty_native
from ptune.models.native_probe import measure_empty


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Read a config.json; a model that transformers has itself is built without storage.

    Args:
        config: as `find_config` has checked it.

    Raises:
        ModelError: a model that takes no prefix.
    """
    if not is_native(config):
        return Architecture.from_config(config)
    model: Any = empty_native(BaseModel("", Path(), dict(config), Generation.NATIVE))
    measure_empty(model)
    decoder, shape = model.base_model, model.base_model.prefix_shape
    widths = _linear_widths(decoder)
    heads = decoder.config.num_attention_heads
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return Architecture(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_size=max(widths),
        num_heads=heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=vocabulary,
        gated=_is_gated(decoder),
        tied=bool(tied or decoder.config.tie_word_embeddings),
        total=sum(weight.numel() for weight in {id(w): w for w in model.parameters()}.values()),
    )


def lora_sizes(model: Any, rank: int, target: str, dropout: float = 0.0) -> Lora:
    """The sizes of a LoRA.

    Args:
        model: from `build_model` or `empty_model`, without a LoRA.
        rank: of its matrices.
        target: of `--lora-target`.
        dropout: of their input.

    Raises:
        ConfigError: from `find_targets`.
    """
    layers, modules = linear_layers(model), find_targets(model, target)
    # In attention and MLP alike, all layers but the last have the same input.
    last = {name.rpartition(".")[0]: name for name in layers}
    inputs = {(name.rpartition(".")[0], name in last.values()): layers[name][1] for name in modules}
    shapes = tuple(layers[name] for name in modules)
    return Lora(rank, shapes, tuple(inputs.values()), dropout)


def _linear_widths(decoder: nn.Module) -> list[int]:
    """Input widths of the layers that are quantized."""
    found = [m.in_features for m in decoder.modules() if isinstance(m, nn.Linear)]
    return found + [len(m.weight) for m in decoder.modules() if isinstance(m, Conv1D)]


def _is_gated(decoder: nn.Module) -> bool:
    """Whether the MLP computes its inner width twice, in one layer or two."""
    names = {name.rpartition(".")[2] for name, _ in decoder.named_modules()}
    return bool(names & {"gate_proj", "gate_up_proj", "w1"})
