"""The folders that hold a prefix: checkpoints, and training outputs with several."""

from __future__ import annotations

from pathlib import Path

from ptune.base.weights import has_weights
from ptune.errors import CheckpointError

PREFIX_FILE = "prefix_encoder.safetensors"


def find_checkpoint(folder: Path) -> Path:
    """Accept a checkpoint, or a training output whose last checkpoint is meant.

    Raises:
        CheckpointError: neither; names what is there.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"checkpoint {folder} is not a folder here; pass what `ptune train --output` wrote"
        )
    if (folder / PREFIX_FILE).is_file() or has_weights(folder):
        return folder
    if steps := numbered_checkpoints(folder):
        return steps[-1]
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise CheckpointError(
        f"no checkpoint in {folder} (found {found}); pass a folder with {PREFIX_FILE}, "
        "pytorch_model.bin or model.safetensors"
    )


def numbered_checkpoints(output: Path) -> list[Path]:
    """The `checkpoint-N` folders of a training output, oldest first; unfinished ones left out."""
    found = [
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in output.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit()
        and ((path / PREFIX_FILE).is_file() or has_weights(path))
    ]
    return [path for _, path in sorted(found)]
