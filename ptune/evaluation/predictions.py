"""The answers of an evaluation on disk: written as they are made, picked up where they stopped."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ptune.errors import ConfigError, DataError
from ptune.files.atomic import write_text_atomically
from ptune.files.json_text import to_json

PREDICTIONS_FILE = "generated_predictions.jsonl"
IDENTITY_FILE = "eval_config.json"


class Predictions:
    """Answers by index of their record.

    Args:
        folder: where `generated_predictions.jsonl` is or will be.
        identity: what decides the answers; a file of another identity is not gone on with.

    Attributes:
        entries: each with `index`, `prompt`, `labels` and `predict`.

    Raises:
        ConfigError: the folder holds another evaluation.
        DataError: its file is damaged.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.file = folder / PREDICTIONS_FILE
        self.entries: dict[int, dict[str, Any]] = {}
        if self.file.is_file():
            self._check_identity(folder / IDENTITY_FILE, identity)
            self.entries = _read_whole_lines(self.file)
            # Whole lines only from here on, so that new ones can follow.
            self._write(self.entries.values())
        else:
            text = to_json(identity, indent=2, sort_keys=True)
            write_text_atomically(folder / IDENTITY_FILE, text + "\n")

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        """Write answers behind the others, as far as they are new."""
        new = [entry for entry in entries if entry["index"] not in self.entries]
        self.entries |= {entry["index"]: entry for entry in new}
        with self.file.open("a", encoding="utf-8") as stream:
            stream.writelines(_line(entry) for entry in new)

    def in_order(self) -> list[dict[str, Any]]:
        """Bring the file into the order of the data; returns all answers in it."""
        ordered = [self.entries[index] for index in sorted(self.entries)]
        self._write(ordered)
        return ordered

    def _write(self, entries: Iterable[dict[str, Any]]) -> None:
        write_text_atomically(self.file, "".join(_line(entry) for entry in entries))

    def _check_identity(self, file: Path, identity: dict[str, Any]) -> None:
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            changed = sorted(name for name in identity if identity[name] != before.get(name))
        except (OSError, ValueError, AttributeError):
            changed = [f"{file.name} is missing or damaged, so all may"]
        if changed:
            raise ConfigError(
                f"output {file.parent} holds another evaluation ({', '.join(changed)} differ); "
                f"pass another --output, or delete {self.file}"
            )


def _line(entry: dict[str, Any]) -> str:
    return to_json(entry) + "\n"


def _read_whole_lines(file: Path) -> dict[int, dict[str, Any]]:
    """Read the answers; half a last line, which a killed run may leave, is made again."""
    found: dict[int, dict[str, Any]] = {}
    # Bytes: half a line may end in half a character, and text may hold other line ends.
    lines = file.read_bytes().rstrip(b"\n").split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            found[int(entry["index"])] = entry
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise DataError(
                    f"{file}:{number} is no prediction ({error}); delete the file"
                ) from error
    return found
