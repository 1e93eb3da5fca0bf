"""Which weights of a ChatGLM are stored in few bits, and the layers that hold them."""

from __future__ import annotations

import re
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel

from ptune.base.folder import BaseModel
from ptune.base.weights import WeightFiles
from ptune.errors import ConfigError, ModelError
from ptune.quantization.backends.fallback import choose_backend
from ptune.quantization.codec import SCALE_SUFFIX
from ptune.quantization.frozen_linear import FrozenLinear, QuantizedEmbedding, QuantizedLinear

# The four linear layers of every block, under their official names; nothing else is quantized.
_QUANTIZED = re.compile(
    r"\.layers\.\d+\.((self_)?attention\.(query_key_value|dense)|mlp\.dense_(h_to_4h|4h_to_h))"
    r"\.weight"
)
_EMBEDDING = "transformer.word_embeddings.weight"


def is_quantized_layer(name: str) -> bool:
    """Whether an official tensor is a weight that the original quantizes."""
    return _QUANTIZED.search(name) is not None and name.endswith(".weight")


def stored_bits(base: BaseModel, files: WeightFiles) -> int | None:
    """How many bits the weights of an official quantized folder have; None for a plain one.

    Raises:
        ModelError: config.json does not say what the weights are, or codes and scales do not pair.
    """
    config_file = base.path / "config.json"
    bits = base.config.get("quantization_bit") or None
    scaled = {name.removesuffix(SCALE_SUFFIX) for name in files.names if _is_scale(name)}
    if bits and not scaled:
        raise ModelError(
            f"quantization_bit {bits} in {config_file} does not go with the weights beside it, "
            f"which have no scales (*{SCALE_SUFFIX}); download all files of one model"
        )
    if scaled and not bits:
        raise ModelError(
            f"quantization_bit {base.config.get('quantization_bit')} in {config_file} does not go "
            "with the quantized weights "
            "beside it; it is 4 or 8, download all files of one model"
        )
    for name in scaled:
        if name not in files.names or files.headers[name].dtype != "int8":
            held = files.headers[name].dtype if name in files.names else "nothing"
            raise ModelError(
                f"{name}{SCALE_SUFFIX} in {base.path} is a scale of int8 codes, but {name} holds "
                f"{held}; download all files of one model"
            )
    for name, header in files.headers.items():
        if name not in scaled and (header.dtype == "int8" or (scaled and is_quantized_layer(name))):
            reason = "as the other weights do" if scaled else "for its int8 codes"
            raise ModelError(
                f"{name} in {base.path} has no {name}{SCALE_SUFFIX} {reason}; "
                "the folder is incomplete, download it again"
            )
    _check_embeddings(base, _EMBEDDING in scaled)
    return bits


def _is_scale(name: str) -> bool:
    return name.endswith(".weight" + SCALE_SUFFIX)


def _check_embeddings(base: BaseModel, quantized: bool) -> None:
    if base.config.get("quantization_embeddings", False) != quantized:
        raise ModelError(
            f"quantization_embeddings {base.config.get('quantization_embeddings')} in "
            f"{base.path / 'config.json'} does not go with {_EMBEDDING} beside it, which has "
            f"{'a' if quantized else 'no'} scale; download all files of one model"
        )


def choose_bits(base: BaseModel, files: WeightFiles, wanted: str | None) -> str | None:
    """What a model's layers are to hold: `4`, `8`, `nf4`, or None for full width.

    Args:
        base: whose folder may be quantized already.
        files: its weights.
        wanted: the same names, or `none`; None takes the folder as it is.

    Raises:
        ConfigError: other bits than a quantized folder has.
        ModelError: from `stored_bits`.
    """
    stored = stored_bits(base, files)
    if stored is None:
        return None if wanted == "none" else wanted
    if wanted not in (None, str(stored)):
        raise ConfigError(
            f"--quantization-bit {wanted} does not go with {base.path}, whose weights have "
            f"{stored} bits already; leave it out, or pass the folder of the half-precision model"
        )
    return str(stored)


def precision_of(model: PreTrainedModel) -> str:
    """What a model computes in and how it is stored, such as `float16 on cuda:0, 8 bits`."""
    dtype = str(model.config.dtype).removeprefix("torch.")
    layers = (layer for layer in model.modules() if isinstance(layer, FrozenLinear))
    storage = next((f", {layer.storage}" for layer in layers), "")
    return f"{dtype} on {model.device}{storage}"


def bits_of(model: PreTrainedModel) -> str | None:
    """What a model's linear layers hold: `4`, `8`, `nf4`, or None for full width."""
    layers = (layer for layer in model.modules() if isinstance(layer, FrozenLinear))
    return next((layer.kind for layer in layers), None)


def count_parameters(model: PreTrainedModel) -> int:
    """Count a model's parameters; a packed weight has as many as it has when restored."""
    layers = [layer for layer in model.modules() if isinstance(layer, FrozenLinear)]
    packed = sum(p.numel() for layer in layers for p in layer.parameters())
    restored: int = sum(layer.in_features * layer.out_features for layer in layers)
    restored += sum(layer.out_features for layer in layers if layer.bias is not None)
    return int(sum(p.numel() for p in model.parameters())) - packed + restored


def quantize_layers(
    model: PreTrainedModel,
    files: WeightFiles,
    bits: str,
    backend: str | None,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Put layers that hold few bits in the place of a model's linear ones, without storage yet.

    Args:
        model: from `empty_model`.
        files: tell whether the embeddings are quantized, too (chatglm-6b-int4-qe).
        bits: `4`, `8` or `nf4`.
        backend: how weights are restored; None takes the fastest that works on `device`.
        dtype: precision to compute in.
        device: where the model will be.
    """
    if bits == "nf4":
        from ptune.quantization.nf4 import NF4Linear

        def replacement(layer: nn.Linear) -> FrozenLinear:
            return NF4Linear(layer.in_features, layer.out_features, layer.bias is not None)
    else:
        chosen = choose_backend(backend, device)

        def replacement(layer: nn.Linear) -> FrozenLinear:
            bias = layer.bias is not None
            return QuantizedLinear(layer.in_features, layer.out_features, int(bits), bias, chosen)

    with init_empty_weights(include_buffers=False):
        for parent in model.base_model.layers.modules():
            for name, layer in parent.named_children():
                if isinstance(layer, nn.Linear):
                    setattr(parent, name, replacement(layer))
        if bits != "nf4" and _EMBEDDING + SCALE_SUFFIX in files.names:
            decoder: Any = model.base_model
            rows, columns = decoder.word_embeddings.weight.shape
            decoder.word_embeddings = QuantizedEmbedding(rows, columns, int(bits), chosen, dtype)
            model.lm_head = QuantizedLinear(columns, rows, int(bits), False, chosen)
            model.config.quantization_embeddings = True
    if bits != "nf4":
        # What is saved from this model says what it holds.
        model.config.quantization_bit = int(bits)
        if hasattr(model, "official_config"):
            model.official_config["quantization_bit"] = int(bits)
