"""A LoRA in a checkpoint: the folder of an adapter as `peft` writes and reads it.

https://github.com/huggingface/peft: `adapter_config.json`, and `adapter_model.safetensors` with
`base_model.model.<layer>.lora_A.weight` `[r, in]` and `lora_B.weight` `[out, r]`.  What is read may
be of `peft` itself or of what trains with it; `peft` is needed for neither way.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptune.base.folder import BaseModel
from ptune.base.weights import WeightFiles, is_finite, save_tensors
from ptune.checkpoint.folder import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    find_checkpoint,
    is_adapter,
    trained_file,
)
from ptune.checkpoint.metadata import CONFIG_FILE, NOUNS, CheckpointConfig
from ptune.config.shared_settings import LORA, P_TUNING
from ptune.errors import CheckpointError, ModelError
from ptune.files.atomic import write_text_atomically
from ptune.files.json_object import read_json_object
from ptune.files.json_text import to_json
from ptune.models.lora import (
    LoraForm,
    attach_lora,
    linear_layers,
    lora_form,
    lora_parameters,
    short_targets,
)

_OUTER = "base_model.model."  # of the library's wrappers
_NAME = re.compile(rf"{re.escape(_OUTER)}(.+)\.lora_([AB])\.weight")
# Settings of low-rank matrices beside linear layers, and of how they were begun and trained; by
# any other one that is set, an adapter is more than that, or may be.
_PLAIN = {
    *("peft_type", "task_type", "peft_version", "auto_mapping", "inference_mode", "revision"),
    *("base_model_name_or_path", "r", "lora_alpha", "use_rslora", "lora_dropout"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "init_lora_weights", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "runtime_config", "megatron_core", "qalora_group_size"),
    "ensure_weight_tying",
}
_NOTHING: tuple[Any, ...] = (None, False, "none", [], {})
_BASE_STAYS = (None, True, False, "gaussian", "orthogonal", "eva")  # of init_lora_weights


def is_lora(folder: Path) -> bool:
    """Whether a checkpoint holds a LoRA; a damaged one is read as the adapter of a prefix.

    Raises:
        CheckpointError: none is there, or its ptune_config.json is damaged or of another method.
    """
    found = find_checkpoint(folder)
    lora = False
    if is_adapter(found):
        try:
            lora = _read_config(found).get("peft_type") == "LORA"
        except CheckpointError:
            return False
    config = CheckpointConfig.read(found)
    if config and trained_file(found) and config.method != (LORA if lora else P_TUNING):
        raise CheckpointError(
            f"method {config.method!r} in {found / CONFIG_FILE} does not go with the "
            f"{NOUNS[LORA if lora else P_TUNING]} beside it; take all files of one checkpoint"
        )
    return lora


def read_lora(folder: Path) -> tuple[LoraForm, dict[str, Tensor]]:
    """Read a LoRA: its form, and its matrices by `<layer>.lora_A.weight`.

    Raises:
        CheckpointError: none is there, or it is damaged, or more than low-rank matrices.
    """
    folder = find_checkpoint(folder)
    file, config = folder / ADAPTER_CONFIG, _read_config(folder)
    for name, value in config.items():
        if name not in _PLAIN and value not in _NOTHING:
            raise _unknown(file, name, value)
    if (start := config.get("init_lora_weights")) not in _BASE_STAYS:
        raise _unknown(file, "init_lora_weights", start)
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise CheckpointError(f"r {rank!r} in {file} is no rank; take the file as it was saved")
    number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
    if not number or not (alpha > 0 and math.isfinite(alpha)):
        raise CheckpointError(
            f"lora_alpha {alpha!r} in {file} is no number above 0; take the file as it was saved"
        )
    if (rslora := config.get("use_rslora")) not in (None, True, False):
        raise CheckpointError(
            f"use_rslora {rslora!r} in {file} is neither true nor false; take the file as it was "
            "saved"
        )
    tensors = _read_tensors(folder)
    modules = tuple(dict.fromkeys(name.rpartition(".lora_")[0] for name in tensors))
    for module in modules:
        _check_pair(module, tensors, rank, folder)
    _check_targets(config.get("target_modules"), modules, file)
    return LoraForm(rank, alpha, modules, rslora=bool(rslora)), tensors


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return read_json_object(folder / ADAPTER_CONFIG)
    except ValueError as error:
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} is damaged ({error}); restore it, or take another "
            "checkpoint"
        ) from error


def _unknown(file: Path, name: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"{name} {value!r} in {file} is of no plain LoRA; merge that adapter into its base with "
        "peft, and pass the merged model with --model"
    )


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    file = folder / ADAPTER_FILE
    try:
        found = dict(WeightFiles(folder, [file]).items())
    except ModelError as error:
        raise CheckpointError(str(error)) from error
    tensors = {}
    for name, tensor in found.items():
        match = _NAME.fullmatch(name)
        if match is None or tensor.dim() != 2 or not tensor.is_floating_point():
            raise CheckpointError(
                f"{name} {list(tensor.shape)} in {file} is no matrix of a LoRA; take the file as "
                "it was saved"
            )
        if not is_finite(tensor.float()):
            raise CheckpointError(
                f"{name} in {file} holds NaN or infinity, its training failed; take an earlier "
                "checkpoint"
            )
        tensors[f"{match[1]}.lora_{match[2]}.weight"] = tensor.float().clone()
    if not tensors:
        raise CheckpointError(f"{file} holds nothing; take another checkpoint")
    return tensors


def _check_pair(module: str, tensors: Mapping[str, Tensor], rank: int, folder: Path) -> None:
    """See that a layer has both matrices, of the rank that is claimed."""
    for matrix, side in (("A", 0), ("B", 1)):
        name = f"{module}.lora_{matrix}.weight"
        if name not in tensors:
            raise CheckpointError(
                f"the LoRA in {folder} lacks {name}; the checkpoint is incomplete, take another one"
            )
        if (held := tensors[name].shape[side]) != rank:
            raise CheckpointError(
                f"r {rank} in {folder / ADAPTER_CONFIG} does not go with {name} beside it, which "
                f"has rank {held}; take all files of one checkpoint"
            )


def _check_targets(claimed: Any, modules: tuple[str, ...], file: Path) -> None:
    """Compare names of layers with those that there are; a pattern is not followed."""
    if not isinstance(claimed, list):
        return
    ends = {str(name): [m for m in modules if f".{m}".endswith(f".{name}")] for name in claimed}
    named = {module for found in ends.values() for module in found}
    wrong = [name for name, found in ends.items() if not found] or sorted({*modules} - named)
    if wrong:
        raise CheckpointError(
            f"target_modules in {file} do not go with {ADAPTER_FILE} beside it: {wrong[0]} is in "
            "one of them alone; take all files of one checkpoint"
        )


def check_fits(
    form: LoraForm, tensors: Mapping[str, Tensor], model: Any, folder: Path, base: BaseModel
) -> None:
    """See that a LoRA is one of this model.

    Args:
        form: of the LoRA.
        tensors: from `read_lora`.
        model: of the base, perhaps without storage.
        folder: that it was read from, for errors.
        base: named in errors.

    Raises:
        CheckpointError: a layer is not there, or of another size.
    """
    layers, config = linear_layers(model), CheckpointConfig.read(find_checkpoint(folder))
    origin = f" (trained on {config.base_model})" if config else ""
    for module in form.modules:
        held = tuple(tensors[f"{module}.lora_{m}.weight"].shape[i] for m, i in (("B", 0), ("A", 1)))
        if (expected := layers.get(module)) != held:
            there = f"is {list(expected)}" if expected else "is not there"
            raise CheckpointError(
                f"{module} {list(held)} of the LoRA in {folder}{origin} does not fit {base.name}, "
                f"where that layer {there}; pass the base model that this LoRA was trained on"
            )


def load_lora(model: Any, folder: Path, base: BaseModel) -> None:
    """Read a LoRA and put it beside a model.

    Raises:
        CheckpointError: from `read_lora` and `check_fits`.
        ConfigError: `peft` is not installed.
    """
    form, tensors = read_lora(folder)
    check_fits(form, tensors, model, folder, base)
    attach_lora(model, form)
    set_values(model, tensors)


def set_values(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Give the LoRA beside a model its values."""
    with torch.no_grad():
        for name, parameter in lora_parameters(model):
            parameter.copy_(tensors[name])


def save_lora(model: Any, folder: Path, base_name: str) -> None:
    """Write the LoRA of a model as an adapter of `peft`.

    Args:
        model: with a LoRA.
        folder: of the checkpoint.
        base_name: what `peft` is to load as the base.
    """
    form = lora_form(model)
    assert form is not None
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": form.rank,
        "lora_alpha": form.alpha,
        "lora_dropout": form.dropout,
        "use_rslora": form.rslora,
        "target_modules": short_targets(model, form.modules),
        "fan_in_fan_out": False,
        "bias": "none",
    }
    text = to_json(config, indent=2, sort_keys=True)
    write_text_atomically(folder / ADAPTER_CONFIG, text + "\n")
    tensors = {
        _OUTER + name: parameter.detach().cpu().contiguous()
        for name, parameter in lora_parameters(model)
    }
    save_tensors(tensors, folder / ADAPTER_FILE)


def digest_lora(folder: Path) -> str:
    """Tell LoRAs apart by their matrices and scale: a SHA-256 in hexadecimal."""
    form, tensors = read_lora(folder)
    digest = hashlib.sha256(repr(form.scale).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
