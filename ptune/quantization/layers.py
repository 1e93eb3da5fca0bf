"""Quantized layers of a ChatGLM: which weights are quantized, and with how many bits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ptune.base.folder import BaseModel
from ptune.base.weights import WeightFiles
from ptune.errors import ConfigError, ModelError
from ptune.quantization.backends.fallback import choose_backend
from ptune.quantization.backends.registry import Backend
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


def may_be_packed(name: str) -> bool:
    """Whether official folders hold a tensor as codes: as above, or the embeddings of int4-qe."""
    return is_quantized_layer(name) or name == _EMBEDDING


def stored_bits(base: BaseModel, files: WeightFiles) -> int | None:
    """The bits of an official quantized folder; None for one that is not quantized.

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
    """How to quantize a model: `4`, `8`, `nf4`, or None for unquantized weights.

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


def check_backend_has_effect(bits: str | None, backend: str | None) -> None:
    """Refuse a dequantization backend where no weights are quantized.

    Args:
        bits: from `choose_bits`.
        backend: that was asked for.

    Raises:
        ConfigError: the weights are not in 4 or 8 bits.
    """
    if backend is not None and bits not in ("4", "8"):
        held = bits or "full width"
        raise ConfigError(
            f"quantization_backend {backend} has no effect on weights in {held}; "
            "leave it out, or pass --quantization-bit 8 or 4"
        )


def precision_of(model: PreTrainedModel) -> str:
    """Precision, device and storage of a model, such as `float16 on cuda:0, 8 bits`."""
    dtype = str(model.config.dtype).removeprefix("torch.")
    layers = (layer for layer in model.modules() if isinstance(layer, FrozenLinear))
    storage = next((f", {layer.storage}" for layer in layers), "")
    return f"{dtype} on {model.device}{storage}"


def bits_of(model: PreTrainedModel) -> str | None:
    """How a model's linear layers are quantized: `4`, `8`, `nf4`, or None if they are not."""
    layers = (layer for layer in model.modules() if isinstance(layer, FrozenLinear))
    return next((layer.kind for layer in layers), None)


def count_parameters(model: PreTrainedModel) -> int:
    """Count a model's parameters; a quantized weight has as many as when dequantized."""
    layers = [layer for layer in model.modules() if isinstance(layer, FrozenLinear)]
    packed = sum(p.numel() for layer in layers for p in layer.parameters())
    dequantized: int = sum(layer.in_features * layer.out_features for layer in layers)
    dequantized += sum(layer.out_features for layer in layers if layer.bias is not None)
    return int(sum(p.numel() for p in model.parameters())) - packed + dequantized


def quantize_layers(
    model: PreTrainedModel,
    files: WeightFiles,
    bits: str,
    backend: str | None,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Replace a model's linear layers by quantized ones, on the meta device.

    Args:
        model: from `empty_model`.
        files: tell whether the embeddings are quantized, too (chatglm-6b-int4-qe).
        bits: `4`, `8` or `nf4`.
        backend: of `BACKENDS`; None takes the fastest that works on `device`.
        dtype: precision to compute in.
        device: where the model will be.
    """
    replacement, chosen = _replacement(bits, backend, device)
    with init_empty_weights(include_buffers=False):
        for parent in model.base_model.layers.modules():
            for name, layer in parent.named_children():
                if isinstance(layer, nn.Linear):
                    setattr(parent, name, replacement(layer))
        if bits != "nf4" and _EMBEDDING + SCALE_SUFFIX in files.names:
            decoder: Any = model.base_model
            rows, columns = decoder.word_embeddings.weight.shape
            assert chosen is not None
            decoder.word_embeddings = QuantizedEmbedding(rows, columns, int(bits), chosen, dtype)
            model.lm_head = QuantizedLinear(columns, rows, int(bits), False, chosen)
            model.config.quantization_embeddings = True
    if bits != "nf4":
        # `save_pretrained` writes it, so that the saved folder is read as a quantized one.
        model.config.quantization_bit = int(bits)


def quantize_loaded(
    model: PreTrainedModel, bits: str, backend: str | None, device: torch.device
) -> None:
    """Replace all linear layers of a decoder that has its weights, one by one, on their way.

    Args:
        model: of transformers' own, on the CPU; what is not quantized stays there.
        bits: `4`, `8` or `nf4`.
        backend: as of `quantize_layers`.
        device: where quantized layers go.

    Raises:
        ConfigError: it has no linear layers.
    """
    replacement, _ = _replacement(bits, backend, device)
    parents = [*model.base_model.modules()]
    kinds = (nn.Linear, Conv1D)
    linear = [(p, n, c) for p in parents for n, c in p.named_children() if type(c) in kinds]
    if not linear:
        raise ConfigError(
            f"--quantization-bit {bits} finds no linear layers in a model of type "
            f"{model.config.model_type}; leave it out"
        )
    for parent, name, layer in linear:
        weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
        rows, columns = weight.shape
        shape = nn.Linear(columns, rows, bias=layer.bias is not None, device="meta")
        packed = replacement(shape)
        packed.pack(weight.to(device).contiguous())
        if layer.bias is not None:
            packed.bias = nn.Parameter(layer.bias.to(device), requires_grad=False)
        setattr(parent, name, packed)


def _replacement(
    bits: str, backend: str | None, device: torch.device
) -> tuple[Callable[[nn.Linear], FrozenLinear], Backend | None]:
    """What makes a quantized layer in the place of a linear one, and the backend it uses."""
    if bits == "nf4":
        from ptune.quantization.nf4 import NF4Linear

        return lambda la: NF4Linear(la.in_features, la.out_features, la.bias is not None), None
    chosen = choose_backend(backend, device)

    def replace(layer: nn.Linear) -> FrozenLinear:
        bias = layer.bias is not None
        return QuantizedLinear(layer.in_features, layer.out_features, int(bits), bias, chosen)

    return replace, chosen
