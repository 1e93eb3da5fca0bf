"""Predictions files: appended to while generating, resumed where they end, read to be scored."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ptune.data.files import read_lines
from ptune.data.messages import check_text, describe
from ptune.errors import ConfigError, DataError
from ptune.files.atomic import write_text_atomically
from ptune.files.json_decoding import problem_of, refuse_constant, unique_keys
from ptune.files.json_object import read_json_object
from ptune.files.json_text import to_json
from ptune.files.names import shown

PREDICTIONS_FILE = "generated_predictions.jsonl"
IDENTITY_FILE = "eval_config.json"
_TEXTS = ("labels", "predict")
_WANTED = "expected the texts 'labels' and 'predict'"


class Predictions:
    """Predictions by index of their record.

    Args:
        folder: where `generated_predictions.jsonl` is or will be.
        identity: what decides the predictions; a file of another identity is not resumed.

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
            _check_own(folder / IDENTITY_FILE, identity)
            text = to_json(identity, indent=2, sort_keys=True)
            write_text_atomically(folder / IDENTITY_FILE, text + "\n")

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        """Append predictions, as far as they are new."""
        new = [entry for entry in entries if entry["index"] not in self.entries]
        self.entries |= {entry["index"]: entry for entry in new}
        with self.file.open("a", encoding="utf-8") as stream:
            stream.writelines(_line(entry) for entry in new)

    def in_order(self) -> list[dict[str, Any]]:
        """Sort the file in the order of the data; returns all predictions in it."""
        ordered = [self.entries[index] for index in sorted(self.entries)]
        self._write(ordered)
        return ordered

    def _write(self, entries: Iterable[dict[str, Any]]) -> None:
        write_text_atomically(self.file, "".join(_line(entry) for entry in entries))

    def _check_identity(self, file: Path, identity: dict[str, Any]) -> None:
        try:
            before = read_json_object(file)
            changed = sorted(name for name in identity if identity[name] != before.get(name))
        except (OSError, ValueError):
            changed = [f"{file.name} is missing or damaged, so all may"]
        if changed:
            raise ConfigError(
                f"output {file.parent} holds another evaluation ({', '.join(changed)} differ); "
                f"pass another --output, or delete {self.file}"
            )


def _check_own(file: Path, identity: dict[str, Any]) -> None:
    """Refuse to write over a file that is no evaluation's of ptune."""
    if not file.exists():
        return
    try:
        own = read_json_object(file).keys() >= identity.keys()
    except (OSError, ValueError):
        own = False
    if not own:
        raise ConfigError(f"{file} was not written by ptune; move it, or pass another --output")


def _line(entry: dict[str, Any]) -> str:
    return to_json(entry) + "\n"


def _read_whole_lines(file: Path) -> dict[int, dict[str, Any]]:
    """Read the predictions; half a last line, as a killed run may leave it, is dropped."""
    found: dict[int, dict[str, Any]] = {}
    # Bytes: half a line may end in half a character, and text may hold other line ends.
    lines = file.read_bytes().rstrip(b"\n").split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            entry = _parse(line)
            index = entry.get("index")
            if type(index) is not int:  # true is one, too
                raise ValueError(f"expected a whole number as 'index', found {describe(index)}")
            found[index] = entry
        except ValueError as error:
            if number < len(lines):
                raise DataError(
                    f"{file}:{number} is no prediction ({error}); delete the file"
                ) from error
    return found


def read_predictions(path: Path) -> list[tuple[str, str]]:
    """Reads (predict, labels) pairs from a predictions file, ptune's or the original's.

    Both are JSON Lines with the texts `labels` and `predict`; other keys are ignored.

    Raises:
        DataError: The file cannot be read or is not a predictions file.
    """
    if os.path.isdir(path):
        inside = path / PREDICTIONS_FILE
        advice = f"pass {shown(inside)}" if inside.is_file() else f"pass a {PREDICTIONS_FILE}"
        raise DataError(f"predictions file {shown(path)} is a folder; {advice}")
    pairs = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            entry = _parse(line)
        except ValueError as error:
            raise DataError(
                f"{path}:{number}: {error}; give a predictions file, such as {PREDICTIONS_FILE}"
            ) from error
        pairs.append((entry["predict"], entry["labels"]))
    if not pairs:
        raise DataError(f"predictions file {path} holds no predictions; generate some first")
    return pairs


def _parse(line: str | bytes) -> dict[str, Any]:
    """Returns the object of a line, with the texts `labels` and `predict`.

    Raises:
        ValueError: What is wrong with the line.
    """
    try:
        entry = json.loads(line, parse_constant=refuse_constant, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:  # not only JSONDecodeError: also huge numbers
        raise ValueError(f"broken JSON ({problem_of(error)})") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{_WANTED}, found {describe(entry)}")
    wrong = [name for name in _TEXTS if not isinstance(entry.get(name), str)]
    if wrong:
        found = ", ".join(f"{describe(entry.get(name))} as {name!r}" for name in wrong)
        raise ValueError(f"{_WANTED}, found {found}")
    for name in _TEXTS:
        check_text(entry[name], f"key {name!r}", blank_is_fine=True)
    return entry
