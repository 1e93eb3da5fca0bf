"""The base model of a checkpoint: which one it is, and whether a given one is the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from ptune.base.folder import BaseModel, Generation, find_base_model
from ptune.base.weights import WeightFiles
from ptune.checkpoint.folder import find_checkpoint
from ptune.checkpoint.metadata import CONFIG_FILE, CheckpointConfig
from ptune.data.prompt import WHOLE, Conversation, render
from ptune.data.template_tokenizer import shared_template_tokenizer
from ptune.errors import CheckpointError

_ROWS, _COLUMNS = 64, 16  # of each matrix, for a fingerprint
_SAMPLE = Conversation.from_turns("类型#裤 What is it?", "裤子 \n1", history=[("你好", "Hello!")])


def fingerprint(base: BaseModel) -> str:
    """Tell base models apart by a few hundred kilobytes of every checkpoint.

    Of a ChatGLM by its layer norms, which are the same in quantized copies of a model.  Of another
    model by a little of all its weights, and by the ids of a prompt, since its tokenizer and chat
    template may be another's.  Both are the same in each file format and precision.

    Returns:
        A SHA-256 in hexadecimal, of weights in bfloat16 by name.
    """
    files = WeightFiles(base.path)
    native = base.generation is Generation.NATIVE
    names = [name for name in files.names if native or "layernorm" in name]
    digest = hashlib.sha256()
    for name, tensor in sorted(files.items(names), key=lambda item: item[0]):
        digest.update(name.encode())
        looked_at = _spread(tensor) if native else tensor
        digest.update(looked_at.half().bfloat16().contiguous().view(torch.int16).numpy().tobytes())
    if native:
        example = render(shared_template_tokenizer(base), base.generation, _SAMPLE, WHOLE)
        digest.update(str(example.input_ids).encode())
    return digest.hexdigest()


def _spread(tensor: Tensor) -> Tensor:
    """A vector as it is; of a matrix the beginnings of rows over all of it."""
    if tensor.dim() < 2:
        return tensor
    rows = tensor.flatten(0, -2)
    step = max(len(rows) // _ROWS, 1)
    return rows[::step, :_COLUMNS].clone()


def check_fingerprint(base: BaseModel, folder: Path) -> None:
    """Refuse a prefix that ptune trained on another model.

    Raises:
        CheckpointError: naming both models.
    """
    config = CheckpointConfig.read(find_checkpoint(folder))
    if config is None or config.fingerprint == (found := fingerprint(base)):
        return
    raise CheckpointError(
        f"the {config.noun} in {folder} was trained on {config.base_model} "
        f"(fingerprint {config.fingerprint[:12]}), not on {base.name} "
        f"({found[:12]}); pass the model it was trained on with --model"
    )


def training_metadata(base: BaseModel, checkpoint: Path | None) -> CheckpointConfig | None:
    """How a checkpoint, or without one a merged model, was trained; None if nothing says so."""
    return CheckpointConfig.read(find_checkpoint(checkpoint) if checkpoint else base.path)


def trained_bits(base: BaseModel, checkpoint: Path | None, wanted: int | str | None) -> str | None:
    """The bits to hold a base in: those wanted, else those that its prefix was trained with."""
    if wanted is not None:
        return str(wanted)
    metadata = training_metadata(base, checkpoint)
    return metadata.settings.get("quantization_bit") if metadata else None


def find_base(
    model: str | None,
    checkpoint: Path | None,
    prompt_format: str | None = None,
    weights: bool = True,
) -> BaseModel:
    """Find the base model of a checkpoint, and see that it is of the same generation.

    Args:
        model: the one given; None takes what the checkpoint was trained on.
        checkpoint: the folder of a prefix; None for a bare or merged model.
        prompt_format: of `--prompt-format`.
        weights: as in `find_base_model`.

    Raises:
        PTuneError: from `resolve_base` and `find_base_model`.
        CheckpointError: the prefix was trained with the prompt of another generation.
    """
    name = resolve_base(model, checkpoint)
    metadata = CheckpointConfig.read(find_checkpoint(checkpoint)) if checkpoint else None
    trained = metadata.prompt_format if metadata else None
    base = find_base_model(name, weights, prompt_format, trained)
    check_prompt_format(base, checkpoint)
    return base


def check_prompt_format(base: BaseModel, checkpoint: Path | None) -> None:
    """Refuse a prefix, or a merged model, that was trained with another generation's prompt.

    Raises:
        CheckpointError: naming both.
    """
    metadata = training_metadata(base, checkpoint)
    if metadata and metadata.prompt_format != base.generation.value:
        raise CheckpointError(
            f"the {metadata.noun} in {checkpoint or base.path} was trained with the prompt of "
            f"{metadata.prompt_format}, but {base.name} is of {base.generation.value}; "
            "pass the model it was trained on with --model"
        )


def resolve_base(model: str | None, checkpoint: Path | None) -> str:
    """The base model to load: the one given, else the one that the checkpoint was trained on.

    Raises:
        CheckpointError: neither says which.
    """
    if model is not None:
        return model
    if checkpoint is None:
        raise CheckpointError("no model is given; pass --model DIR or --checkpoint DIR")
    folder = find_checkpoint(checkpoint)
    config = CheckpointConfig.read(folder)
    if config is None:
        raise CheckpointError(
            f"no {CONFIG_FILE} in {folder}, so its base model is unknown; pass it with --model"
        )
    return config.base_model
