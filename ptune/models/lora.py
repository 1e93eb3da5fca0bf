"""LoRA: low-rank matrices beside the linear layers of a frozen model, by the `peft` library.

Paper: https://arxiv.org/abs/2106.09685; beside quantized weights, https://arxiv.org/abs/2305.14314.
The library puts its layers into the model in place, without a wrapper, so that everything that
takes a model of this package takes it as it was.

Shapes: `r` rank, `in` and `out` features: a layer is `x W^T + s (x A^T) B^T` with `A` `[r, in]`,
`B` `[out, r]` and the scale `s`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from ptune.config.shared_settings import ALL_LINEAR
from ptune.errors import ConfigError, missing_package
from ptune.quantization.frozen_linear import FrozenLinear

_ADAPTER = "default"  # what the library calls the only one


@dataclass(frozen=True)
class LoraForm:
    """What a LoRA is beside its values.

    Attributes:
        rank: `r`.
        alpha: the scale is `alpha / r`.
        modules: names of the layers it stands beside, as the model has them.
        dropout: on the input of `A`, in training.
        rslora: the scale is `alpha / sqrt(r)`.
    """

    rank: int
    alpha: float
    modules: tuple[str, ...]
    dropout: float = 0.0
    rslora: bool = False

    @property
    def scale(self) -> float:
        """`s`."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def linear_layers(model: Any) -> dict[str, tuple[int, int]]:
    """The linear layers of a model's decoder, quantized ones included: name to (`out`, `in`).

    Of a model with a LoRA, those below it, and none of its own.
    """
    inside = {id(module) for module in model.base_model.modules()}
    found = {}
    for name, module in model.named_modules():
        if id(module) not in inside or ".prefix_encoder." in name or ".lora_" in name:
            continue
        name = name.removesuffix(".base_layer")
        if isinstance(module, (nn.Linear, FrozenLinear)):
            found[name] = (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            rows, columns = module.weight.shape
            found[name] = (columns, rows)
    return found


def find_targets(model: Any, target: str) -> tuple[str, ...]:
    """The layers that `--lora-target` means.

    Args:
        model: from `build_model` or `empty_model`.
        target: `all-linear`, or ends of names between commas.

    Raises:
        ConfigError: a name is of no linear layer.
    """
    layers = linear_layers(model)
    if target == ALL_LINEAR:
        return tuple(layers)
    chosen: set[str] = set()
    for name in (part.strip() for part in target.split(",")):
        matched = {layer for layer in layers if f".{layer}".endswith(f".{name}")}
        if not (name and matched):
            known = ", ".join(sorted({layer.rpartition(".")[2] for layer in layers}))
            raise ConfigError(
                f"lora_target {name!r} is no linear layer of a model of type "
                f"{model.config.model_type}; use {ALL_LINEAR}, or some of {known}"
            )
        chosen |= matched
    return tuple(layer for layer in layers if layer in chosen)


def short_targets(model: Any, modules: Collection[str]) -> list[str]:
    """Names by which `peft` finds the same layers: their last parts, where that is enough."""
    last = {name.rpartition(".")[2] for name in modules}
    meant = {name for name in _plain_names(model) if name.rpartition(".")[2] in last}
    return sorted(last if meant == set(modules) else modules)


def _plain_names(model: Any) -> set[str]:
    """Names of modules as they are without a LoRA."""
    inner = (".lora_", ".base_layer")
    return {n for n, _ in model.named_modules() if not any(part in n for part in inner)}


def library() -> Any:
    """The `peft` library, imported when it is needed.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise missing_package(error, "LoRA", "lora") from error
    return peft


def attach_lora(model: Any, form: LoraForm) -> None:
    """Put a new LoRA, `A` drawn from torch's generator and `B` zero, beside a frozen model.

    Its values are in float32, whatever the model's precision is.

    Raises:
        ConfigError: `peft` is not installed.
    """
    peft = library()
    config = peft.LoraConfig(
        r=form.rank,
        lora_alpha=form.alpha,
        lora_dropout=form.dropout,
        use_rslora=form.rslora,
        target_modules=short_targets(model, form.modules),
    )
    # Its layer asks the one below for its sizes and its product alone, which ours have.
    config._register_custom_module({FrozenLinear: peft.tuners.lora.Linear})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not heard of ours, and of transposed ones
        peft.inject_adapter_in_model(config, model)
    model.lora_form = form
    for _, parameter in lora_parameters(model):
        parameter.data = parameter.data.float()
    model.train(model.training)  # new layers are in training


def lora_form(model: Any) -> LoraForm | None:
    """The form of a model's LoRA; None without one."""
    return getattr(model, "lora_form", None)


def lora_parameters(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """The matrices of a model's LoRA, such as `...q_proj.lora_A.weight`."""
    for layer, module in _layers(model):
        for matrix in ("lora_A", "lora_B"):
            yield f"{layer}.{matrix}.weight", getattr(module, matrix)[_ADAPTER].weight


def enable_lora(model: Any, enabled: bool) -> None:
    """Let a model be computed with its LoRA, if it has one, or without."""
    for _, module in _layers(model):
        module.enable_adapters(enabled)


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    form = lora_form(model)
    for name in form.modules if form else ():
        yield name, model.get_submodule(name)
