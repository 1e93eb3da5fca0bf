"""From a base model's folder to a frozen model; the only place that knows all generations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ptune.base.folder import BaseModel, Generation
from ptune.base.native import native_context
from ptune.base.schema import known_fields
from ptune.base.weights import WeightFiles, is_finite, sample
from ptune.device.linear import take_fast_kernels
from ptune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from ptune.models.chatglm2 import ChatGLM2ForConditionalGeneration
from ptune.models.chatglm2_layout import ChatGLM2Config, from_official
from ptune.models.generation_defaults import default_generation_config, native_generation_config
from ptune.models.native_build import empty_native, load_native
from ptune.models.native_probe import measure_empty, probe
from ptune.models.weight_check import check_generation, check_weights, not_finite
from ptune.quantization.frozen_linear import FrozenLinear, QuantizedEmbedding
from ptune.quantization.layers import (
    check_backend_has_effect,
    choose_bits,
    quantize_layers,
    quantize_loaded,
)

_CONTEXT = 2048  # tokens, where a config.json does not say

# What is decided here or later: files, precision, storage, prefix.
_DECIDED = {"architectures", "auto_map", "torch_dtype", "dtype", "transformers_version"}
_DECIDED |= {"quantization_bit", "quantization_embeddings", "pre_seq_len", "prefix_projection"}


def build_model(
    base: BaseModel,
    dtype: torch.dtype,
    device: torch.device,
    quantization_bit: str | None = None,
    quantization_backend: str | None = None,
) -> PreTrainedModel:
    """Load a base model, tensor by tensor, frozen and without a prefix.

    Peak memory is the model plus the largest tensor being converted or quantized.

    Args:
        base: from `find_base_model`.
        dtype: precision of all weights, and of the computation with quantized ones.
        device: where they go, straight from the file.
        quantization_bit: `4`, `8`, `nf4` or `none`; None takes the folder as it is.
        quantization_backend: dequantizes them; None takes the fastest that works.

    Raises:
        ModelError: damaged or missing files, weights that are not what config.json asks for, or not
            finite.
        ConfigError: bits that do not go with the folder, a backend that does not work here.
    """
    if base.generation is Generation.NATIVE:
        return _build_native(base, dtype, device, quantization_bit, quantization_backend)
    files = WeightFiles(base.path)
    check_generation(base, files)
    files.fetch()  # the disk works while kernels are tried, which takes seconds at the first time
    model, rename = empty_model(base)
    model.config.dtype = dtype
    if device.type == "cuda":
        # cuDNN's attention plans for every new length: a training step of ChatGLM-6B on an H200
        # takes 0.64 s with it and 0.10 s without (benchmarks/NOTES.md).
        torch.backends.cuda.enable_cudnn_sdp(False)
    taken = check_weights(base, files, model)
    bits = choose_bits(base, files, quantization_bit)
    check_backend_has_effect(bits, quantization_backend)
    if bits:
        quantize_layers(model, files, bits, quantization_backend, dtype, device)
    for official, tensor in files.items():
        if official not in taken:
            continue
        for name, part in rename(official, tensor).items():
            held, kept = _assign(model, name, part, dtype, device)
            if held.is_floating_point() and not is_finite(held):
                raise not_finite(official, tensor, kept, base)
    _tie(model)
    for buffer in model.buffers():  # rotary frequencies: computed, and kept in float32
        buffer.data = buffer.data.to(device)
    model.requires_grad_(False)
    model.generation_config = default_generation_config(base.generation, model.config)
    return model.eval()


def _build_native(
    base: BaseModel,
    dtype: torch.dtype,
    device: torch.device,
    bits: str | None,
    backend: str | None,
) -> PreTrainedModel:
    """As `build_model`; the library reads the weights."""
    bits = None if bits == "none" else bits
    check_backend_has_effect(bits, backend)
    # Where they are quantized, layer by layer from mapped files.
    model = load_native(base, dtype, torch.device("cpu") if bits else device)
    if bits:
        quantize_loaded(model, bits, backend, device)
        model.to(device)
    model.requires_grad_(False)
    take_fast_kernels(model)
    if getattr(model.config, "max_position_embeddings", None) is None:
        model.config.max_position_embeddings = native_context(base.config) or _CONTEXT
    probe(model)
    model.generation_config = native_generation_config(base, model)
    return model.eval()


def empty_model(
    base: BaseModel,
) -> tuple[PreTrainedModel, Callable[[str, Tensor], dict[str, Tensor]]]:
    """Build a model without storage, and the renaming of official tensors for it."""
    if base.generation is Generation.NATIVE:
        model = empty_native(base)
        measure_empty(model)
        return model, lambda name, tensor: {name: tensor}
    with init_empty_weights(include_buffers=False):
        if base.generation is Generation.CHATGLM:
            config = ChatGLMConfig.from_dict(_settings(base.config, ChatGLMConfig()))
            return ChatGLMForConditionalGeneration(config), lambda name, tensor: {name: tensor}
        settings = _settings(base.config, ChatGLM2Config())
        settings["prompt_format"] = base.generation.value  # the folder may owe it to its name
        config = ChatGLM2Config.from_dict(settings)
        model = ChatGLM2ForConditionalGeneration(config)
        return model, lambda name, tensor: from_official(name, tensor, config)


def _settings(config: dict[str, Any], default: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration takes of config.json.

    Args:
        config: as it was checked.
        default: of the class; what is an attribute of it, and was not checked, is left out.
    """
    known = known_fields(config)
    return {
        name: value
        for name, value in config.items()
        if value is not None
        and name not in _DECIDED
        and (name in known or not hasattr(default, name))
    }


def _assign(
    model: nn.Module, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, str]:
    """Put a weight in its place.

    Returns:
        The tensor in which a NaN of the weight would show, and how the weight is kept now.
    """
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, FrozenLinear) and leaf == "weight" and tensor.is_floating_point():
        weight = tensor.to(device)
        module.pack(weight)
        # A NaN of a row is in its scale.
        return getattr(module, "weight_scale", sample(weight)), module.kind
    stored = isinstance(module, (FrozenLinear, QuantizedEmbedding)) and leaf != "bias"
    target = getattr(module, leaf).dtype if stored else dtype
    # First to the device: in one call, the conversion would take the CPU's memory and time.
    value = tensor.to(device).to(target).contiguous()
    setattr(module, leaf, nn.Parameter(value, requires_grad=False))
    return sample(value), str(target).removeprefix("torch.")


def _tie(model: PreTrainedModel) -> None:
    """Let the head of the first generation share the embeddings, their scales included."""
    model.tie_weights()
    embedding = model.get_input_embeddings()
    if isinstance(embedding, QuantizedEmbedding):
        model.lm_head.weight = embedding.weight
        model.lm_head.weight_scale = embedding.weight_scale
