"""`load_model`: a base model with its prefix."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ptune.checkpoint.base import check_fingerprint, find_base, trained_bits
from ptune.checkpoint.folder import find_whole_checkpoint
from ptune.checkpoint.method import method_in
from ptune.device.full_memory import SMALLER_WEIGHTS, memory_advice
from ptune.device.precision import choose_device, choose_dtype
from ptune.models.build import build_model


def load_model(
    path: str | Path,
    checkpoint: str | Path | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    quantization_bit: int | str | None = None,
    quantization_backend: str | None = None,
    prompt_format: str | None = None,
) -> PreTrainedModel:
    """Load a ChatGLM with its prefix, if it has one.

    Args:
        path: a folder (a merged one brings its own prefix), a hub id, or `tiny`.
        checkpoint: a folder with a trained prefix.
        dtype: precision of the base, by default what suits the device; the prefix is float32.
        device: by default the first card, else the CPU.
        quantization_bit: hold the base's linear layers in 4 or 8 bits, `nf4`, or `none`; by default
            as the prefix was trained, else as the folder holds them.
        quantization_backend: one of `registry.BACKENDS`; by default the fastest that works.
        prompt_format: `chatglm`, `chatglm2`, `chatglm3` or `glm4`, where neither the folder nor the
            checkpoint says which the model is.

    Returns:
        A transformers model in evaluation mode, in which only the prefix requires a gradient.

    Raises:
        PTuneError: what is missing, damaged or does not fit together.
    """
    folder = None
    if checkpoint is not None:
        folder, passed_over = find_whole_checkpoint(Path(checkpoint))
        if passed_over:
            warnings.warn(passed_over, stacklevel=2)
    base = find_base(str(path), folder, prompt_format)
    chosen = choose_device(device)
    bits = trained_bits(base, folder, quantization_bit)
    with memory_advice(SMALLER_WEIGHTS):
        model = build_model(base, choose_dtype(dtype, chosen), chosen, bits, quantization_backend)
        if folder is not None:
            check_fingerprint(base, folder)
            method_in(folder).load(model, folder, base)
        elif base.config.get("pre_seq_len"):
            method_in(base.path).load(model, base.path, base)
    return model
