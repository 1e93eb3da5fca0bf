"""From a folder of a model that transformers has itself to a frozen model in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from ptune.base.folder import BaseModel
from ptune.base.native import native_config
from ptune.base.weights import WeightFiles, is_finite, sample
from ptune.errors import ModelError
from ptune.models.native import prepare
from ptune.models.weight_check import not_finite

_SHOWN = 3  # names in an error when many are wrong


def load_native(base: BaseModel, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load a model as the library does, without its code from the folder.

    Args:
        base: from `find_base_model`.
        dtype: precision of all weights.
        device: where they go.

    Returns:
        A model in which a prefix has its place, not yet probed.

    Raises:
        ModelError: damaged or missing files, weights that are not what config.json asks for, or not
            finite.
    """
    files = WeightFiles(base.path)  # damage is told better than the library does
    config = native_config(base.config, base.path / "config.json")
    try:
        with _quiet():
            model, found = AutoModelForCausalLM.from_pretrained(
                base.path,
                config=config,
                dtype=dtype,
                device_map={"": device},
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each of its readers has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"the weights in {base.path} do not go with its config.json ({reason}); "
            "download all files of one model"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{len(missing)} weights are not in {base.path} ({_some(missing)}); "
            "the folder is incomplete or of another model, download it again"
        )
    if unused := sorted(found["unexpected_keys"]):
        warnings.warn(
            f"{len(unused)} weights in {base.path} are not used: the model that its config.json "
            f"describes has no place for them ({_some(unused)})",
            stacklevel=2,
        )
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not is_finite(sample(weight)):
            kept = str(dtype).removeprefix("torch.")
            original = dict(files.items([name] if name in files.names else []))
            raise not_finite(name, original.get(name, weight), kept, base)
    prepare(model)
    model.requires_grad_(False)
    return model.eval()  # type: ignore[no-any-return]


def empty_native(base: BaseModel) -> PreTrainedModel:
    """Build a model without storage, in which a prefix has its place."""
    config = native_config(base.config, base.path / "config.json")
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    prepare(model)
    return model  # type: ignore[no-any-return]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bars and reports: what is wrong is an error of ours."""
    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
