"""From a base model's folder to a frozen model; the only place that knows all generations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from ptune.base_model import BaseModel, Generation
from ptune.errors import ModelError
from ptune.models import chatglm2
from ptune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from ptune.models.chatglm2 import ChatGLM2ForConditionalGeneration
from ptune.quantization import SCALE_SUFFIX, dequantize
from ptune.weights import WeightFiles

# ChatGLM3 ends its turn by beginning somebody else's: <|user|> and <|observation|>.
_CHATGLM3_STOPS = [64795, 64797]


def build_model(base: BaseModel, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load a base model, tensor by tensor, frozen and without a prefix.

    Peak memory is the model plus the largest tensor being converted.

    Args:
        base: from `find_base_model`.
        dtype: precision of all weights.
        device: where they go, straight from the file.

    Raises:
        ModelError: damaged or missing files, weights of another generation, missing weights.
    """
    files = WeightFiles(base.path)
    check_generation(base, files)
    model, rename = empty_model(base)
    model.config.dtype = dtype
    missing = {name for name, _ in model.named_parameters()}
    for official, tensor in _dequantized(files, base):
        for name, part in rename(official, tensor).items():
            if name in missing:
                _assign(model, name, part, dtype, device, base)
                missing.discard(name)
    model.tie_weights()
    if missing := {name for name, p in model.named_parameters() if p.is_meta}:
        some = ", ".join(sorted(missing)[:3])
        raise ModelError(
            f"{len(missing)} weights are not in {base.path} ({some} ...); "
            "the folder is incomplete or of another model, download it again"
        )
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
            if not base.config.get("position_encoding_2d", True):
                raise ModelError(
                    "position_encoding_2d false in config.json is no released ChatGLM-6B; "
                    "use a folder of THUDM/chatglm-6b"
                )
            config = ChatGLMConfig(**_architecture(base.config))
            model = ChatGLMForConditionalGeneration(config)
            # The head is tied to the embeddings, whatever a file holds for it.
            return model, lambda name, tensor: {} if name == "lm_head.weight" else {name: tensor}
        glm_config = chatglm2.translate_config(base.config)
        model = ChatGLM2ForConditionalGeneration(glm_config, _architecture(base.config))
        return model, lambda name, tensor: chatglm2.from_official(name, tensor, glm_config)


def _dequantized(files: WeightFiles, base: BaseModel) -> Iterator[tuple[str, Tensor]]:
    """Stream the tensors; those of an official int4 or int8 folder come out in full width."""
    names = [name for name in files.names if name.endswith(SCALE_SUFFIX)]
    scales = dict(files.items(names))
    for name, tensor in files.items([name for name in files.names if name not in scales]):
        if tensor.dtype != torch.int8:
            yield name, tensor
        elif name + SCALE_SUFFIX in scales:
            bits = base.config.get("quantization_bit")
            if bits not in (4, 8):
                raise ModelError(
                    f"quantization_bit {bits} in {base.path / 'config.json'} does not go with the "
                    "quantized weights beside it; it is 4 or 8, download all files of one model"
                )
            columns = tensor.shape[-1] * 8 // bits
            yield name, dequantize(tensor, scales[name + SCALE_SUFFIX], columns, torch.float32)
        else:
            raise ModelError(
                f"{name} in {base.path} is quantized but has no {name}{SCALE_SUFFIX}; "
                "the folder is incomplete, download it again"
            )


def _architecture(config: dict[str, Any]) -> dict[str, Any]:
    """config.json without the folder's Python files (`auto_map`), precision and quantization."""
    left_out = {"auto_map", "architectures", "torch_dtype", "dtype", "transformers_version"}
    left_out |= {"quantization_bit", "quantization_embeddings"}
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
    expected = getattr(module, leaf).shape
    if tensor.shape != expected:
        raise ModelError(
            f"{name} has shape {list(tensor.shape)} in {base.path} but config.json asks for "
            f"{list(expected)}; the two belong to different models, download both again"
        )
    value = tensor.to(device=device, dtype=dtype).contiguous()
    setattr(module, leaf, nn.Parameter(value, requires_grad=False))


def _generation_config(base: BaseModel, config: Any) -> GenerationConfig:
    stops = [config.eos_token_id]
    if base.generation is Generation.CHATGLM3:
        stops += _CHATGLM3_STOPS
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=stops,
        pad_token_id=config.pad_token_id,
        do_sample=False,
    )
