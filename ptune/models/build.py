"""From a base model's folder to a frozen model; the only place that knows all generations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedModel

from ptune.base.folder import BaseModel, Generation
from ptune.base.weights import WeightFiles
from ptune.errors import ModelError
from ptune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from ptune.models.chatglm2 import ChatGLM2ForConditionalGeneration
from ptune.models.chatglm2_layout import ChatGLM2Config, from_official
from ptune.models.generation_defaults import default_generation_config
from ptune.quantization.frozen_linear import FrozenLinear, QuantizedEmbedding
from ptune.quantization.layers import (
    check_backend_has_effect,
    choose_bits,
    quantize_layers,
)


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
        quantization_backend: how quantized weights are restored; None takes the fastest that works.

    Raises:
        ModelError: damaged or missing files, weights of another generation, missing weights.
        ConfigError: bits that do not go with the folder, a backend that does not work here.
    """
    files = WeightFiles(base.path)
    check_generation(base, files)
    files.fetch()  # the disk works while kernels are tried, which takes seconds at the first time
    model, rename = empty_model(base)
    model.config.dtype = dtype
    if device.type == "cuda":
        # cuDNN's attention plans for every new length: a training step of ChatGLM-6B on an H200
        # takes 0.64 s with it and 0.10 s without (benchmarks/NOTES.md).
        torch.backends.cuda.enable_cudnn_sdp(False)
    bits = choose_bits(base, files, quantization_bit)
    check_backend_has_effect(bits, quantization_backend)
    if bits:
        quantize_layers(model, files, bits, quantization_backend, dtype, device)
    missing = {name for name, _ in model.named_parameters()}
    for official, tensor in files.items():
        for name, part in rename(official, tensor).items():
            if name in missing:
                _assign(model, name, part, dtype, device, base)
                missing.discard(name)
    _tie(model)
    if missing := {name for name, p in model.named_parameters() if p.is_meta}:
        some = ", ".join(sorted(missing)[:3])
        raise ModelError(
            f"{len(missing)} weights are not in {base.path} ({some} ...); "
            "the folder is incomplete or of another model, download it again"
        )
    for buffer in model.buffers():  # rotary frequencies: computed, and kept in float32
        buffer.data = buffer.data.to(device)
    model.requires_grad_(False)
    model.generation_config = default_generation_config(base.generation, model.config)
    return model.eval()


def empty_model(
    base: BaseModel,
) -> tuple[PreTrainedModel, Callable[[str, Tensor], dict[str, Tensor]]]:
    """Build a model without storage, and the renaming of official tensors for it."""
    settings = _architecture(base.config)
    with init_empty_weights(include_buffers=False):
        if base.generation is Generation.CHATGLM:
            model = ChatGLMForConditionalGeneration(ChatGLMConfig.from_dict(settings))
            # The head is tied to the embeddings, whatever a file holds for it.
            return model, lambda name, tensor: {} if name.startswith("lm_head.") else {name: tensor}
        config = ChatGLM2Config.from_dict(settings)
        model = ChatGLM2ForConditionalGeneration(config)
        return model, lambda name, tensor: from_official(name, tensor, config)


def _architecture(config: dict[str, Any]) -> dict[str, Any]:
    """config.json without what is decided here or later: files, precision, storage, prefix."""
    left_out = {"architectures", "torch_dtype", "dtype", "transformers_version"}
    left_out |= {"quantization_bit", "quantization_embeddings", "pre_seq_len", "prefix_projection"}
    return {key: value for key, value in config.items() if key not in left_out}


def check_generation(base: BaseModel, files: WeightFiles) -> None:
    """Refuse weights of another generation than config.json is of.

    Raises:
        ModelError: naming both, or that the weights are of no ChatGLM.
    """
    first = any(name.startswith("transformer.layers.0.") for name in files.names)
    second = any(name.startswith("transformer.encoder.layers.0.") for name in files.names)
    if first == second:
        sample = ", ".join(list(files.names)[:3])
        raise ModelError(
            f"the weights in {base.path} are not of a ChatGLM (they begin with {sample}); "
            "pass the folder of a base model"
        )
    if first != (base.generation is Generation.CHATGLM):
        found = "ChatGLM-6B" if first else "ChatGLM2 or 3"
        raise ModelError(
            f"{base.path} mixes generations: config.json is of {base.generation.value}, "
            f"the weights are of {found}; download all files of one model into one folder"
        )


def _assign(
    model: nn.Module,
    name: str,
    tensor: Tensor,
    dtype: torch.dtype,
    device: torch.device,
    base: BaseModel,
) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, FrozenLinear) and leaf == "weight" and tensor.is_floating_point():
        expected = torch.Size([module.out_features, module.in_features])
        _check_shape(name, tensor, expected, base)
        module.pack(tensor.to(device))
        return
    expected = getattr(module, leaf).shape
    _check_shape(name, tensor, expected, base)
    stored = isinstance(module, (FrozenLinear, QuantizedEmbedding)) and leaf != "bias"
    target = getattr(module, leaf).dtype if stored else dtype
    # First to the device: in one call, the conversion would take the CPU's memory and time.
    value = tensor.to(device).to(target).contiguous()
    setattr(module, leaf, nn.Parameter(value, requires_grad=False))


def _check_shape(name: str, tensor: Tensor, expected: torch.Size, base: BaseModel) -> None:
    if tensor.shape != expected:
        raise ModelError(
            f"{name} has shape {list(tensor.shape)} in {base.path} but config.json asks for "
            f"{list(expected)}; the two belong to different models, download both again"
        )


def _tie(model: PreTrainedModel) -> None:
    """Let the head of the first generation share the embeddings, their scales included."""
    model.tie_weights()
    embedding = model.get_input_embeddings()
    if isinstance(embedding, QuantizedEmbedding):
        model.lm_head.weight = embedding.weight
        model.lm_head.weight_scale = embedding.weight_scale
