"""The tensors of a prefix: read, checked, attached to a model, written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptune.base.folder import BaseModel, Generation
from ptune.base.weights import WeightFiles, has_weights, is_finite, save_tensors
from ptune.checkpoint.adapter import from_adapter, read_adapter
from ptune.checkpoint.folder import PREFIX_FILE, find_checkpoint, is_adapter
from ptune.checkpoint.metadata import CONFIG_FILE, CheckpointConfig
from ptune.errors import CheckpointError, ModelError
from ptune.files.json_object import read_json_object
from ptune.models.prefix_encoder import PrefixEncoder, PrefixShape

OFFICIAL_KEY = "transformer.prefix_encoder."


def attach_prefix(model: PreTrainedModel, prefix: PrefixEncoder) -> None:
    """Put a prefix in front of a frozen model; its parameters become the trainable ones."""
    decoder = model.base_model
    decoder.prefix_encoder = prefix.to(device=model.device, dtype=torch.float32)
    model.config.pre_seq_len = prefix.pre_seq_len
    model.config.prefix_projection = prefix.prefix_projection
    prefix.requires_grad_(True)
    prefix.train(model.training)


def load_prefix(
    model: PreTrainedModel, folder: Path, base: BaseModel, dropout: float = 0.0
) -> PrefixEncoder:
    """Read a prefix and attach it; length and projection follow from the tensors' shapes.

    Raises:
        CheckpointError: no prefix there, an incomplete one, or one of another model.
    """
    prefix = build_prefix(model.base_model.prefix_shape, folder, base, dropout)
    attach_prefix(model, prefix)
    return prefix


def build_prefix(
    shape: PrefixShape, folder: Path, base: BaseModel, dropout: float = 0.0
) -> PrefixEncoder:
    """Read a prefix without a model to attach it to.

    Args:
        shape: what `base` demands.
        folder: of the checkpoint, perhaps an adapter of `peft`.
        base: named in errors.
        dropout: of the prefix, in training.

    Raises:
        CheckpointError: no prefix there, an incomplete one, or one of another model.
    """
    state = read_prefix(folder)
    pre_seq_len, prefix_projection = prefix_form(state)
    prefix = PrefixEncoder(shape, pre_seq_len, prefix_projection, dropout)
    expected = {name: tuple(p.shape) for name, p in prefix.state_dict().items()}
    if missing := expected.keys() - state.keys():
        raise CheckpointError(
            f"the prefix in {folder} lacks {', '.join(sorted(missing))}; "
            "the checkpoint is incomplete, take another one"
        )
    if unused := state.keys() - expected.keys():
        raise CheckpointError(
            f"the prefix in {folder} holds {', '.join(sorted(unused))}, which no part of a "
            "prefix takes; take another checkpoint"
        )
    for name, tensor in state.items():
        _check_prefix_tensor(name, tensor, expected[name], folder, base)
    _check_claims(find_checkpoint(folder), prefix)
    if is_adapter(found := find_checkpoint(folder)):
        state = {name: from_adapter(tensor, base, found) for name, tensor in state.items()}
    prefix.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return prefix


def _check_prefix_tensor(
    name: str, tensor: Tensor, expected: tuple[int, ...], folder: Path, base: BaseModel
) -> None:
    if tuple(tensor.shape) != expected:
        config = CheckpointConfig.read(folder)
        origin = f" (trained on {config.base_model})" if config else ""
        raise CheckpointError(
            f"{name} {list(tensor.shape)} of the prefix in {folder}{origin} does not fit "
            f"{base.name}, which takes {list(expected)}; "
            "pass the base model that this prefix was trained on"
        )
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"{name} of the prefix in {folder} holds {tensor.dtype}, not numbers in floating "
            "point; take another checkpoint"
        )
    if not is_finite(tensor.float()):
        raise CheckpointError(
            f"{name} of the prefix in {folder} holds NaN or infinity, its training failed; "
            "take an earlier checkpoint"
        )


def _check_claims(folder: Path, prefix: PrefixEncoder) -> None:
    """Compare what the files beside a prefix say of it with its tensors."""
    for name in (CONFIG_FILE, "config.json"):
        claims = _claims(folder / name)
        for field_name in ("pre_seq_len", "prefix_projection"):
            claimed, held = claims.get(field_name), getattr(prefix, field_name)
            if claimed is not None and claimed != held:
                raise CheckpointError(
                    f"{field_name} {claimed} in {folder / name} does not go with the prefix beside "
                    f"it, which has {held}; take all files of one checkpoint"
                )


def _claims(file: Path) -> dict[str, Any]:
    try:
        return read_json_object(file) if file.is_file() else {}
    except ValueError as error:
        raise CheckpointError(f"{file} {error}; restore it") from error


def prefix_form(state: dict[str, Tensor]) -> tuple[int, bool]:
    """Length of a prefix, and whether it has a projection, from its tensors' names and shapes."""
    embedding = state.get("embedding.weight")
    length = embedding.shape[0] if embedding is not None and embedding.dim() else 1
    return length, "trans.0.weight" in state


def read_prefix(folder: Path) -> dict[str, Tensor]:
    """Read a prefix's tensors by their names inside the encoder (`embedding.weight`, ...).

    Raises:
        CheckpointError: no checkpoint there, or one without a prefix, with an empty one, with two.
    """
    folder = find_checkpoint(folder)
    own = folder / PREFIX_FILE
    if is_adapter(folder):
        return {"embedding.weight": read_adapter(folder)}
    try:
        files = WeightFiles(folder, [own] if own.is_file() else None)
        names = [name for name in files.names if OFFICIAL_KEY in name]
        if own.is_file():
            _check_alone(own, [name for name in files.names if name not in names])
        state = {n.split(OFFICIAL_KEY)[1]: t.clone() for n, t in files.items(names)}
    except ModelError as error:
        raise CheckpointError(str(error)) from error
    if len(state) < len(names):
        raise CheckpointError(
            f"{folder} holds more than one prefix ({', '.join(names[:3])} ...); "
            "take a checkpoint with one"
        )
    if not state:
        raise _without_prefix(folder)
    if (embedding := state.get("embedding.weight")) is not None and embedding.shape[:1] == (0,):
        raise CheckpointError(
            f"the prefix in {folder} is empty (embedding.weight {list(embedding.shape)}); "
            "take another checkpoint"
        )
    return state


def _check_alone(own: Path, others: list[str]) -> None:
    """Refuse tensors that are of no prefix in its file, and another prefix beside that."""
    if others:
        raise CheckpointError(
            f"{own} holds {', '.join(sorted(others)[:3])}, which no part of a prefix takes; "
            "take another checkpoint"
        )
    if has_weights(own.parent) and (file := _prefix_file(own.parent)):
        raise CheckpointError(
            f"{own.parent} holds two prefixes, in {own.name} and in {file.name}; "
            "take one of the files away"
        )


def _without_prefix(folder: Path) -> CheckpointError:
    claimed = _claims(folder / "config.json").get("pre_seq_len")
    if claimed:
        return CheckpointError(
            f"pre_seq_len {claimed} in {folder / 'config.json'} tells of a prefix, but the weights "
            f"beside it hold no {OFFICIAL_KEY}*; take all files of one merged folder, or the "
            "config.json of the base model"
        )
    return CheckpointError(
        f"{folder} holds weights but no {OFFICIAL_KEY}*; it is no P-Tuning checkpoint, "
        "pass a folder that training wrote, or pass this one with --model"
    )


def digest_prefix(folder: Path) -> str:
    """Tell prefixes apart by their tensors, in whatever file they are.

    Returns:
        A SHA-256 in hexadecimal.

    Raises:
        CheckpointError: from `read_prefix`.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(read_prefix(folder).items()):
        digest.update(name.encode() + tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def has_prefix(base: BaseModel) -> bool:
    """Whether a model is a merged one, with a prefix among its weights."""
    own = base.generation is Generation.NATIVE and (base.path / PREFIX_FILE).is_file()
    return own or _prefix_file(base.path) is not None


def _prefix_file(folder: Path) -> Path | None:
    """The weight file of a whole model that holds a prefix."""
    names = WeightFiles(folder).names
    return next((file for name, file in names.items() if OFFICIAL_KEY in name), None)


def save_prefix(model: PreTrainedModel, folder: Path) -> None:
    """Write a model's prefix under the official key names."""
    state = model.base_model.prefix_encoder.state_dict()
    tensors = {OFFICIAL_KEY + n: t.detach().float().cpu().contiguous() for n, t in state.items()}
    save_tensors(tensors, folder / PREFIX_FILE)
