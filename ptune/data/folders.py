"""Folders of data files: which of their files are read, and when the user has to say it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ptune.data import foreign
from ptune.data.files import ARROW_ENDINGS, JSON_ENDINGS, TABLE_ENDINGS, ending
from ptune.errors import DataError
from ptune.files.names import shown

_ENDINGS = {*JSON_ENDINGS, *TABLE_ENDINGS, *ARROW_ENDINGS}
# What `datasets` and the hub write beside the data.
_ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_SPLITS = {
    split: re.compile(rf"(?<![a-z])({words})(set|data)?(?![a-z])|{chinese}")
    for split, words, chinese in (
        ("training", "train|training", "训练"),
        ("development", "dev|val|valid|validation|eval|evaluation", "验证"),
        ("test", "test|testing", "测试"),
    )
}
_SHOWN = 5


def find_data_files(paths: Sequence[Path], notices: list[str], mixed: bool = True) -> list[Path]:
    """Puts the data files of a folder, sorted by name, in the folder's place.

    Args:
        paths: Files and folders.
        notices: Is told which files of a folder are left out.
        mixed: Whether they become one, so that the splits of a folder would meet.

    Raises:
        DataError: A folder holds none, or files of several splits, or data that cannot be read; a
            file is named twice.
    """
    found: list[Path] = []
    for path in paths:
        found += _files_of(path, notices, mixed) if _is_folder(path) else [path]
    known: dict[tuple[int, int], Path] = {}
    for identity, file in _with_identity(found):
        if identity in known:
            names = _names(known[identity], file)
            raise DataError(f"data file {shown(file)} is given twice{names}; leave one of them out")
        known[identity] = file
    return found


def check_apart(training: Sequence[Path], development: Sequence[Path]) -> None:
    """Refuses to measure by what is trained on.

    Args:
        training: Files and folders.
        development: The same of the development data.

    Raises:
        DataError: A file is in both.
    """
    known = dict(_with_identity(find_data_files(training, [])))
    for identity, file in _with_identity(find_data_files(development, [])):
        if identity in known:
            raise DataError(
                f"data file {shown(file)} is both training and development data"
                f"{_names(known[identity], file)}; leave it out of one of the two"
            )


def _with_identity(paths: Sequence[Path]) -> Iterator[tuple[tuple[int, int], Path]]:
    """Files and what tells them apart, as `os.path.samefile` does: links are followed."""
    for path in paths:
        with contextlib.suppress(OSError, ValueError):  # complained about when it is opened
            status = path.stat()
            yield (status.st_dev, status.st_ino), path


def _names(first: Path, second: Path) -> str:
    return f" (as {shown(first)} and as {shown(second)})" if str(first) != str(second) else ""


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # without rights for the folder around it; said when it is opened
        return False


def _files_of(folder: Path, notices: list[str], mixed: bool) -> list[Path]:
    name = shown(folder)
    try:
        entries = sorted(e for e in folder.iterdir() if not e.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"data folder {name} cannot be read ({error.strerror}); check its rights"
        ) from error
    files = [entry for entry in entries if _is_data_file(entry)]
    kept = set(files)
    others = [shown(Path(entry.name)) for entry in entries if entry not in kept]
    if not files:
        what = f"it holds {_list(others)}" if others else "it is empty"
        raise DataError(f"no data file in folder {name} ({what}); name a file, or another folder")
    for entry in entries:
        if foreign.kind_by_name(ending(entry)) in foreign.HOLDERS:
            raise DataError(
                f"{shown(entry)} may be part of the data in folder {name}, but cannot be read; "
                f"take it away, or name the files that you want"
            )
    if mixed:
        _check_splits(name, files)
    if others:
        notices.append(f"of folder {name} these are no data files and left out: {_list(others)}")
    return files


def _is_data_file(path: Path) -> bool:
    # A broken link is complained about when it is opened; a pipe in a folder could block for ever.
    is_file = path.is_file() or (path.is_symlink() and not path.exists())
    return is_file and ending(path) in _ENDINGS and path.name not in _ABOUT


def _check_splits(name: str, files: list[Path]) -> None:
    """Refuses to mix what somebody has split into training and other data."""
    splits: dict[str, Path] = {}
    for file in files:
        splits.setdefault(_split_of(file), file)
    if len(splits) > 1 and splits.keys() != {"", "training"}:
        names = ", ".join(shown(Path(file.name)) for file in splits.values())
        raise DataError(
            f"folder {name} holds data of several splits ({names}), which are not to be mixed; "
            f"name the files that you want"
        )


def _split_of(file: Path) -> str:
    """Which split the name of a file tells; "" for none."""
    name = file.name.lower()
    return next((split for split, pattern in _SPLITS.items() if pattern.search(name)), "")


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
