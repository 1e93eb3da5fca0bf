"""The `checkpoint-N` folders of a training: written whole, checked, rotated."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ptune.checkpoint.folder import numbered_checkpoints, step_of
from ptune.checkpoint.metadata import CONFIG_FILE
from ptune.errors import TrainingError
from ptune.files.atomic import remove_folder, staging
from ptune.files.manifest import MANIFEST_FILE, find_damage, read_manifest, write_manifest
from ptune.training.optimizer_state import OPTIMIZER_FILE

STATE_FILE = "trainer_state.json"
_PARTS = [CONFIG_FILE, OPTIMIZER_FILE, STATE_FILE]  # beside what is trained
_SMALL_FILES = 2**20  # bytes, generously


class Checkpoints:
    """The checkpoints of a training output.

    Only folders that ptune wrote are its own: their manifest says so, with the step in their name.
    No other is taken, replaced or removed.

    Args:
        output: the folder they are in.
        keep: how many; the best one is kept besides.
        trained_bytes: size of what is trained.
        trained: the files that hold it.
    """

    def __init__(self, output: Path, keep: int, trained_bytes: int, trained: Sequence[str]) -> None:
        self.output = output
        self.keep = keep
        self.trained_bytes = trained_bytes
        self.parts = [*trained, *_PARTS]

    def save(self, step: int, best: int | None, write: Callable[[Path], None]) -> Path:
        """Write a checkpoint, then remove those that are too many.

        Args:
            step: of the checkpoint.
            best: the step whose checkpoint is not to be removed.
            write: fills the folder it is given with `parts`.

        Raises:
            TrainingError: there is no room, or the folder cannot be written.
        """
        folder = self.output / f"checkpoint-{step}"
        self.check_room()
        try:
            if folder.exists():
                self._replace_own(folder)
            with staging(folder) as partial:
                write(partial)
                write_manifest(partial, self.parts, step=step)
        except OSError as error:
            raise self._unwritable(folder, error) from error
        self._rotate(best)
        return folder

    def check_room(self) -> None:
        """Refuse to begin what the disk has no room for.

        Raises:
            TrainingError: naming both sizes.
        """
        needed = self.trained_bytes * 3 + _SMALL_FILES  # AdamW keeps two numbers for each
        free = shutil.disk_usage(self.output).free
        if free < needed:
            raise TrainingError(
                f"output {self.output} has {free / 1e6:,.1f} MB free, and a checkpoint takes "
                f"{needed / 1e6:,.1f} MB; {self._advice()}"
            )

    def _replace_own(self, folder: Path) -> None:
        """Remove a checkpoint of the same step, which is damaged: else it would have been taken."""
        if strange := self._not_ours(folder):
            raise TrainingError(
                f"{folder} is in the place of the next checkpoint and holds {strange}, which no "
                "training of ptune wrote; move it away, then give the same command again"
            )
        remove_folder(folder)

    def _rotate(self, best: int | None) -> None:
        own = [path for path in numbered_checkpoints(self.output) if is_own(path)]
        for path in own[: -self.keep]:
            # What else somebody has put there, such as an evaluation's answers, is not ours.
            if step_of(path) != best and not self._not_ours(path):
                remove_folder(path)

    def _not_ours(self, folder: Path) -> str:
        """What is in a checkpoint folder beside its own files; a link is none of ours, either."""
        if folder.is_symlink():
            return "what it links to"
        own = {*self.parts, MANIFEST_FILE}
        return ", ".join(sorted({path.name for path in folder.iterdir()} - own))

    def _unwritable(self, folder: Path, error: OSError) -> TrainingError:
        return TrainingError(
            f"{folder} cannot be written ({error.strerror or error}); {self._advice()}"
        )

    def _advice(self) -> str:
        last = newest_whole(self.output)[0]
        return "make room or mend it, then give the same command again: it " + (
            f"goes on from {last.name}" if last else "starts anew, for there is no checkpoint yet"
        )


def is_own(folder: Path) -> bool:
    """Whether a `checkpoint-N` folder is of a training of ptune's, and under its own name."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.get("step") == step_of(folder)


def find_fault(folder: Path) -> str | None:
    """What keeps a training from taking a `checkpoint-N` folder, by its manifest.

    Returns:
        Worded as by `find_damage`; None for a whole one of ptune's, under its own name.
    """
    if (damage := find_damage(folder)) is not None:
        return damage
    if is_own(folder):
        return None
    manifest = read_manifest(folder)
    return f"holds the manifest of step {manifest.get('step')}" if manifest else "holds no manifest"


def newest_whole(output: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint from which a training can go on.

    Returns:
        The checkpoint, or None; and what is wrong with newer ones, worded for the user.
    """
    damaged: list[str] = []
    for path in reversed(numbered_checkpoints(output)):
        if (fault := find_fault(path)) is None:
            return path, damaged
        if any((path / name).is_file() for name in (MANIFEST_FILE, CONFIG_FILE)):
            damaged.append(f"{path} {fault}")
    return None, damaged


def evaluations_since_best(log_history: list[dict[str, Any]], best_step: int | None) -> int:
    """How many evaluations there were since the one of the lowest eval_loss.

    Args:
        log_history: of trainer_state.json.
        best_step: that of the lowest eval_loss; None without any.
    """
    steps = [line["step"] for line in log_history if "eval_loss" in line]
    return 0 if best_step is None else sum(step > best_step for step in steps)
