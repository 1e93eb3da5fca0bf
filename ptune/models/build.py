"""From a base model's folder to a frozen model; the only place that knows all generations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from ptune.base.folder import BaseModel, Generation
from ptune.base.weights import WeightFiles, is_finite, sample
from ptune.models import chatglm2
from ptune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from ptune.models.chatglm2 import ChatGLM2ForConditionalGeneration
from ptune.models.weight_check import check_generation, check_weights, not_finite
from ptune.quantization.frozen_linear import FrozenLinear, QuantizedEmbedding
from ptune.quantization.layers import choose_bits, quantize_layers

# What ChatGLM-6B takes from config.json; all else there is of the folder's own code and files.
_FIRST_CONFIG = (
    *("vocab_size", "hidden_size", "inner_hidden_size", "num_layers", "num_attention_heads"),
    *("layernorm_epsilon", "max_sequence_length", "use_cache", "bos_token_id", "eos_token_id"),
    *("mask_token_id", "gmask_token_id", "pad_token_id"),
)
# What a saved config.json does not keep: Python files, precision and quantization of the folder.
_NOT_SAVED = {"auto_map", "architectures", "torch_dtype", "dtype", "transformers_version"}
_NOT_SAVED |= {"quantization_bit", "quantization_embeddings"}
# ChatGLM3 ends its turn by beginning somebody else's: <|user|> and <|observation|>.
_CHATGLM3_STOPS = [64795, 64797]


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
    taken = check_weights(base, files, model)
    if bits := choose_bits(base, files, quantization_bit):
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
    model.generation_config = _generation_config(base, model.config)
    return model.eval()


def empty_model(
    base: BaseModel,
) -> tuple[PreTrainedModel, Callable[[str, Tensor], dict[str, Tensor]]]:
    """Build a model without storage, and the renaming of official tensors for it."""
    with init_empty_weights(include_buffers=False):
        if base.generation is Generation.CHATGLM:
            known = {name: base.config[name] for name in _FIRST_CONFIG if name in base.config}
            model = ChatGLMForConditionalGeneration(ChatGLMConfig(**known))
            return model, lambda name, tensor: {name: tensor}
        glm_config = chatglm2.translate_config(base.config, base.generation)
        official = {key: value for key, value in base.config.items() if key not in _NOT_SAVED}
        official["prompt_format"] = base.generation.value  # the folder may owe it to its name
        model = ChatGLM2ForConditionalGeneration(glm_config, official)
        return model, lambda name, tensor: chatglm2.from_official(name, tensor, glm_config)


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


def _generation_config(base: BaseModel, config: Any) -> GenerationConfig:
    end = config.eos_token_id
    stops = list(end) if isinstance(end, list) else [end]
    if base.generation is Generation.CHATGLM3:
        stops += [stop for stop in _CHATGLM3_STOPS if stop not in stops]
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=stops,
        pad_token_id=config.pad_token_id,
        do_sample=False,
    )
