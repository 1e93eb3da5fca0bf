"""What training has put beside a model: what it is called, and how it is left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ptune.models.lora import enable_lora, lora_form


def describe_trained(model: Any) -> str | None:
    """What stands beside a model from `load_model`, on or off; None for a bare one."""
    if (form := lora_form(model)) is not None:
        return f"LoRA of rank {form.rank}"
    encoder = model.base_model.prefix_encoder
    return f"prefix of {encoder.pre_seq_len} tokens" if encoder is not None else None


def show_trained(model: Any, shown: bool) -> None:
    """Let `model` answer with what was trained, or as the bare base model."""
    model.base_model.prefix_enabled = shown
    enable_lora(model, shown)


@contextmanager
def bare(model: Any) -> Iterator[None]:
    """Run `model` as the bare base model inside the block."""
    shown = model.base_model.prefix_enabled
    show_trained(model, False)
    try:
        yield
    finally:
        show_trained(model, shown)
