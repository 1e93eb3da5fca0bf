"""Whether the weight files of a folder hold what its config.json asks for.

Names, shapes and types are looked at, no values: it takes milliseconds.
"""

from __future__ import annotations

import re

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from ptune.base.folder import BaseModel, Generation
from ptune.base.weights import WeightFiles, is_finite
from ptune.errors import ModelError
from ptune.models.chatglm import ChatGLMForConditionalGeneration
from ptune.quantization.codec import SCALE_SUFFIX
from ptune.quantization.layers import may_be_packed, stored_bits

# What official files hold beside the weights that are read: buffers, which are computed anew, the
# head that ChatGLM-6B ties to its embeddings, and a prefix, which has a reader of its own.
_BESIDE = {
    True: re.compile(
        r"transformer\.(layers\.\d+\.attention\.rotary_emb\.inv_freq|prefix_encoder\..*)"
        r"|lm_head\.weight(_scale)?"
    ),
    False: re.compile(r"transformer\.(rotary_pos_emb\.inv_freq|prefix_encoder\..*)"),
}
_PREFIX = "transformer.prefix_encoder."
_SHOWN = 3  # names in an error when many are wrong

_Expected = dict[str, tuple[tuple[int, ...], bool]]  # shape, and whether in floating point


def check_generation(base: BaseModel, files: WeightFiles) -> None:
    """Refuse weights of another generation, or of more or fewer layers, than config.json is of.

    Raises:
        ModelError: naming both, or that the weights are of no ChatGLM.
    """
    first = _layers(files, "transformer.layers")
    second = _layers(files, "transformer.encoder.layers")
    if bool(first) == bool(second):
        sample = ", ".join(list(files.names)[:_SHOWN])
        raise ModelError(
            f"the weights in {base.path} are not of a ChatGLM (they begin with {sample}); "
            "pass the folder of a base model"
        )
    if bool(first) != (base.generation is Generation.CHATGLM):
        found = "ChatGLM-6B" if first else "ChatGLM2, ChatGLM3 or GLM-4"
        raise ModelError(
            f"{base.path} mixes generations: config.json is of {base.generation.value}, "
            f"the weights are of {found}; download all files of one model into one folder"
        )
    layers, asked = max(first | second) + 1, base.config["num_layers"]
    if layers != asked:
        raise ModelError(
            f"num_layers {asked} in {base.path / 'config.json'} does not go with the weights "
            f"beside it, which have {layers} layers; download all files of one model"
        )


def _layers(files: WeightFiles, prefix: str) -> set[int]:
    found = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in files.names)
    return {int(match[1]) for match in found if match}


def check_weights(base: BaseModel, files: WeightFiles, model: PreTrainedModel) -> set[str]:
    """Compare names, shapes and types of all tensors with those of a model.

    Args:
        base: named in errors.
        files: its weights.
        model: from `empty_model`.

    Returns:
        The names of the tensors that the model takes.

    Raises:
        ModelError: a weight that is missing, that no part of the model takes, or of another shape
            or type; codes and scales that do not go with config.json.
    """
    expected = _official_shapes(model)
    if bits := stored_bits(base, files):
        expected = _packed(expected, files, bits)
    if absent := [name for name in expected if name not in files.names]:
        raise ModelError(
            f"{len(absent)} weights are not in {base.path} ({_some(absent)}); "
            "the folder is incomplete or of another model, download it again"
        )
    for name, (shape, is_float) in expected.items():
        header = files.headers[name]
        if is_float and not header.is_float:  # that codes are int8, `stored_bits` has seen
            raise ModelError(
                f"{name} in {files.names[name]} holds {header.dtype} but config.json asks for "
                "numbers in floating point; download all files of one model"
            )
        if header.shape != shape:
            raise ModelError(
                f"{name} has shape {list(header.shape)} in {base.path} but config.json asks for "
                f"{list(shape)}; the two belong to different models, download both again"
            )
    beside = _BESIDE[base.generation is Generation.CHATGLM]
    if unused := [n for n in files.names if n not in expected and not beside.fullmatch(n)]:
        denied = any(name.endswith("query_key_value.bias") for name in unused)
        raise ModelError(
            f"{len(unused)} weights in {base.path} have no place in the model that its config.json "
            f"describes ({_some(unused)}{', add_qkv_bias is false' if denied else ''}); "
            "the two belong to different models, download both again"
        )
    prefix = next((name for name in files.names if _PREFIX in name), None)
    if prefix and not base.config.get("pre_seq_len"):
        raise ModelError(
            f"{prefix} in {base.path} is of a prefix but its config.json has no pre_seq_len; "
            "take both files of one merged folder"
        )
    return set(expected)


def _official_shapes(model: PreTrainedModel) -> _Expected:
    parameters = dict(model.named_parameters())
    if isinstance(model, ChatGLMForConditionalGeneration):
        del parameters["lm_head.weight"]
    else:
        parameters = revert_weight_conversion(model, parameters)
    return {name: (tuple(tensor.shape), True) for name, tensor in parameters.items()}


def _packed(expected: _Expected, files: WeightFiles, bits: int) -> _Expected:
    """The same with codes and scales in the place of the weights that have scales."""
    packed: _Expected = {}
    for name, (shape, _) in expected.items():
        if name + SCALE_SUFFIX in files.names and may_be_packed(name):
            packed[name] = ((shape[0], shape[1] * bits // 8), False)
            packed[name + SCALE_SUFFIX] = (shape[:1], True)
        else:
            packed[name] = (shape, True)
    return packed


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")


def not_finite(name: str, tensor: Tensor, kept: str, base: BaseModel) -> ModelError:
    """The error of a weight that turned out to hold NaN or infinity.

    Args:
        name: of the weight.
        tensor: as its file has it.
        kept: the precision it was to be kept in; `4` or `8` for a packed one.
        base: whose weight it is.
    """
    if is_finite(tensor):
        packed = kept in ("4", "8")
        return ModelError(
            f"{name} in {base.path} has values up to {tensor.abs().max():g}, which "
            f"{'float16 scales' if packed else kept} cannot hold; "
            f"use {'--quantization-bit none' if packed else '--dtype bfloat16 or float32'}"
        )
    return ModelError(
        f"{name} in {base.path} holds NaN or infinity; the file is damaged or its training failed, "
        "download it again or take another model"
    )
