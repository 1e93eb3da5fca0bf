"""The folders that hold a prefix: checkpoints, and training outputs with several."""

from __future__ import annotations

import re
from pathlib import Path

from ptune.base.weights import has_weights
from ptune.errors import CheckpointError
from ptune.files.manifest import MANIFEST_FILE, find_damage

PREFIX_FILE = "prefix_encoder.safetensors"
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
_NUMBERED = re.compile(r"checkpoint-(0|[1-9][0-9]*)", re.ASCII)


def find_checkpoint(folder: Path) -> Path:
    """Accept a checkpoint, or a training output whose last checkpoint is meant.

    Raises:
        CheckpointError: neither; names what is there.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"checkpoint {folder} is not a folder here; pass what `ptune train --output` wrote"
        )
    if _holds_prefix(folder):
        return folder
    if steps := numbered_checkpoints(folder):
        return steps[-1]
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise CheckpointError(
        f"no checkpoint in {folder} (found {found}); pass a folder with {PREFIX_FILE}, "
        f"{ADAPTER_CONFIG} and {ADAPTER_FILE}, pytorch_model.bin or model.safetensors"
    )


def find_whole_checkpoint(folder: Path) -> tuple[Path, str | None]:
    """Find a checkpoint as `find_checkpoint` does, and pass over damaged ones.

    Args:
        folder: a checkpoint, or a training output.

    Returns:
        The checkpoint, and what to tell the user if it is an earlier one than he may think.

    Raises:
        CheckpointError: there is none, or what there is is damaged.
    """
    newest = find_checkpoint(folder)
    damage = find_damage(newest)
    if damage is None:
        return newest, None
    for earlier in reversed(numbered_checkpoints(folder)):
        if earlier != newest and find_damage(earlier) is None:
            return earlier, f"{newest} {damage}; taking {earlier}, the newest that is whole"
    advice = "take another checkpoint, or train again"
    if whole := _whole_beside(newest):
        advice = f"take {whole}, the newest that is whole"
    raise CheckpointError(f"{newest} {damage}; {advice}")


def _whole_beside(checkpoint: Path) -> Path | None:
    """The newest undamaged checkpoint of the output that a numbered one is in."""
    if not _NUMBERED.fullmatch(checkpoint.name):
        return None
    others = [path for path in numbered_checkpoints(checkpoint.parent) if path != checkpoint]
    return next((path for path in reversed(others) if find_damage(path) is None), None)


def numbered_checkpoints(output: Path) -> list[Path]:
    """The `checkpoint-N` folders of a training output, oldest first; unfinished ones left out."""
    found = [
        (step, path)
        for path in output.glob("checkpoint-*")
        if (step := step_of(path)) is not None
        and (_holds_prefix(path) or (path / MANIFEST_FILE).is_file())  # perhaps a damaged one
    ]
    return [path for _, path in sorted(found)]


def step_of(checkpoint: Path) -> int | None:
    """The step in a checkpoint's name; None for another name."""
    match = _NUMBERED.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


def is_adapter(folder: Path) -> bool:
    """Whether what a folder holds is an adapter of `peft`, and no prefix of this package."""
    own = (folder / PREFIX_FILE).is_file()
    return not own and (folder / ADAPTER_CONFIG).is_file() and (folder / ADAPTER_FILE).is_file()


def trained_file(folder: Path) -> Path | None:
    """The first file of a folder that holds a prefix or an adapter alone; None without one."""
    files = (folder / name for name in (PREFIX_FILE, ADAPTER_CONFIG, ADAPTER_FILE))
    return next((file for file in files if file.exists()), None)


def _holds_prefix(folder: Path) -> bool:
    return (folder / PREFIX_FILE).is_file() or has_weights(folder) or is_adapter(folder)
