"""Files of questions in shards, which are told apart by what they hold.

A shard is so many records of a file in a row.  Its answers follow from its records, their places
and how they are answered alone, so that whoever loses it can compute it again.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ptune.data.files import ARROW_ENDINGS, JSON_ENDINGS, PACKED_ENDINGS, TABLE_ENDINGS
from ptune.data.folders import find_data_files
from ptune.data.records import Found, Reading, Record, good_records
from ptune.data.source import check_file
from ptune.errors import DataError
from ptune.files.names import shown

_ENDINGS = {*JSON_ENDINGS, *TABLE_ENDINGS, *ARROW_ENDINGS}


@dataclass(frozen=True)
class Shard:
    """Records in a row of a file.

    Attributes:
        target: name of the file for the answers.
        number: of the shard in its file, from 0.
        first: index of its first record in the file, bad ones left out.
        records: of it.
    """

    target: str
    number: int
    first: int
    records: tuple[Record, ...]


@dataclass(frozen=True)
class QuestionFile:
    """A file of questions that has been read once.

    Attributes:
        path: where it is.
        target: name of the file for its answers.
        records: how many it has, bad ones left out.
        digest: of them: a SHA-256 in hexadecimal, which does not depend on the shards.
        shards: of each, the index of its first record and the digest of all.
    """

    path: Path
    target: str
    records: int
    digest: str
    shards: tuple[tuple[int, str], ...]

    def size(self, number: int) -> int:
        """Records of a shard."""
        firsts = [first for first, _ in self.shards[number : number + 2]]
        return (firsts[1] if len(firsts) > 1 else self.records) - firsts[0]


def find_questions(paths: Sequence[Path], notices: list[str]) -> dict[str, Path]:
    """The files to be read, by the names of the files for their answers.

    Args:
        paths: files and folders.
        notices: is told which files of a folder are left out.

    Raises:
        DataError: a file cannot be opened, or read twice, or two would have one name.
    """
    found: dict[str, Path] = {}
    for path in find_data_files(paths, notices, mixed=False):
        check_file(path)
        if not path.is_file():
            raise DataError(
                f"data file {shown(path)} is a pipe or a device, and is to be read twice; save it"
            )
        target = target_name(path)
        if target in found:
            raise DataError(
                f"the answers to {shown(found[target])} and to {shown(path)} would both be "
                f"{target}; rename one of them, or answer them in two runs"
            )
        found[target] = path
    return found


def target_name(path: Path) -> str:
    """The name of the file for the answers: the same without endings of data, and .jsonl."""
    name = path.name
    for endings in (PACKED_ENDINGS, _ENDINGS):
        stem, dot, last = name.rpartition(".")
        while stem and dot and last.lower() in endings:
            name = stem
            stem, dot, last = name.rpartition(".") if endings is PACKED_ENDINGS else ("", "", "")
    return f"{name}.jsonl"


def survey(path: Path, target: str, reading: Reading, found: Found, size: int) -> QuestionFile:
    """Read a file to see that all of it can be read, and what it holds.

    Args:
        path: of the file.
        target: name of the file for its answers.
        reading: how.
        found: is filled on the way.
        size: most records of a shard.

    Raises:
        DataError: it cannot be read.
    """
    whole, shards, first = hashlib.sha256(), list[tuple[int, str]](), 0
    records = good_records(path, reading, found)
    while taken := tuple(itertools.islice(records, size)):
        contents = [_content(record) for record in taken]
        for content in contents:
            whole.update(content)
        shards.append((first, _digest(contents)))
        first += len(taken)
    return QuestionFile(path, target, first, whole.hexdigest(), tuple(shards))


def read_shards(file: QuestionFile, reading: Reading, numbers: Collection[int]) -> Iterator[Shard]:
    """Read a file again, shard by shard.

    Args:
        file: from `survey`.
        reading: as there.
        numbers: of the shards that are wanted.

    Raises:
        DataError: it holds other records than it did.
    """
    records = good_records(file.path, reading, Found())
    for number, (first, digest) in enumerate(file.shards):
        taken = tuple(itertools.islice(records, file.size(number)))
        if number not in numbers:
            continue
        if _digest([_content(record) for record in taken]) != digest:
            raise DataError(
                f"data file {shown(file.path)} has changed since it was read first; start again "
                "when it is complete"
            )
        yield Shard(file.target, number, first, taken)
        if number == max(numbers):
            return


def _digest(contents: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(contents)).hexdigest()


def _content(record: Record) -> bytes:
    """All that an answer and what is written with it follow from."""
    return repr((record.line, record.messages)).encode() + b"\0"
