"""The folder of answers: shards are written as they come, and joined when their file has them all.

`.shards/NAME/` holds the shards of the answers NAME, each under its number and the digest of its
records and of how they are answered, and after the joining `done.json`, which says what the answers
are of and what they are.  Whatever is there is there in full (`files/atomic.py`), so a run goes on
with what it does not find.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ptune.commands.predict.result import Counts
from ptune.commands.predict.shards import QuestionFile
from ptune.errors import ConfigError, DataError
from ptune.files.atomic import remove_partials, write_text_atomically, writing
from ptune.files.json_object import read_json_object
from ptune.files.json_text import to_json
from ptune.files.manifest import digest as digest_file
from ptune.files.names import shown

IDENTITY_FILE = "predict_config.json"
SHARDS_FOLDER, DONE_FILE = ".shards", "done.json"


def check_output(folder: Path, questions: Mapping[str, Path]) -> None:
    """Refuse a folder in which answers would stand among the questions.

    Args:
        folder: for the answers; it need not exist.
        questions: from `find_questions`.

    Raises:
        ConfigError: naming a file of questions in it; or it is none.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output {folder} is a file; pass a folder with --output")
    for path in questions.values():
        if path.resolve().parent == folder.resolve():
            raise ConfigError(
                f"output {folder} holds the data file {shown(path)}; pass another --output"
            )


class Answers:
    """Answers by file and shard; nobody else writes there meanwhile.

    Args:
        folder: where they are or will be.
        identity: what decides the answers but for the records.

    Raises:
        ConfigError: the folder holds answers of another identity, or not ours.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self._key = hashlib.sha256(to_json(identity, sort_keys=True).encode()).hexdigest()
        _check_identity(folder / IDENTITY_FILE, identity)
        for shards in (folder / SHARDS_FOLDER).glob("*"):
            remove_partials(shards)  # of a killed run

    def finished(self, file: QuestionFile) -> Counts | None:
        """What the finished answers to a file sum up to; None if they are not finished.

        Raises:
            ConfigError: they are to other records, or are not what was written.
        """
        target = self.folder / file.target
        if not target.is_file():
            return None
        try:
            done = read_json_object(self._shards(file) / DONE_FILE)
            counts = Counts(**done["counts"])
            is_ours = digest_file(target) == done["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            is_ours = False
        if not is_ours:
            raise ConfigError(
                f"{target} is not as ptune wrote it; move it, or pass another --output"
            )
        if done.get("data") != file.digest or done.get("key") != self._key:
            raise ConfigError(
                f"{target} answers other records than {shown(file.path)} has now; delete it to "
                "have them answered anew, or pass another --output"
            )
        self._remove_shards(file)  # that a killed run has left
        return counts

    def missing(self, file: QuestionFile) -> list[int]:
        """Numbers of the shards that are not answered."""
        return [n for n in range(len(file.shards)) if not self._shard(file, n).is_file()]

    def write(self, file: QuestionFile, number: int, lines: Iterable[dict[str, Any]]) -> None:
        """Write the answers to a shard."""
        shard = self._shard(file, number)
        shard.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(shard, "".join(to_json(line) + "\n" for line in lines))

    def join(self, file: QuestionFile) -> Counts:
        """Join the shards of a file, all of which are there, and remove them.

        Raises:
            DataError: one is damaged.
        """
        target, counts, whole = self.folder / file.target, Counts(), hashlib.sha256()
        with writing(target) as partial:
            with partial.open("wb") as stream:
                for number in range(len(file.shards)):
                    for text, line in self._lines(file, number):
                        stream.write(text)
                        whole.update(text)
                        counts.add_line(line)
            done = {"key": self._key, "data": file.digest, "sha256": whole.hexdigest()}
            said = to_json(done | {"counts": asdict(counts)}, indent=2)
            # Before the answers: they are ours if it says so.
            write_text_atomically(self._shards(file) / DONE_FILE, said + "\n")
        self._remove_shards(file)
        return counts

    def _lines(self, file: QuestionFile, number: int) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """The lines of a shard, each checked to be of the record in its place."""
        shard, size = self._shard(file, number), file.size(number)
        first, _ = file.shards[number]
        lines = shard.read_bytes().splitlines(keepends=True)
        try:
            if len(lines) != size:
                raise ValueError(f"{len(lines)} lines for {size} records")
            for index, text in enumerate(lines, first):
                line = json.loads(text)
                if line["index"] != index:
                    raise ValueError(f"index {line['index']} in the place of {index}")
                Counts().add_line(line)
                yield text, line
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"shard {shard} is damaged ({error}); delete it, and the same command answers it "
                "again"
            ) from error

    def _shards(self, file: QuestionFile) -> Path:
        return self.folder / SHARDS_FOLDER / file.target

    def _shard(self, file: QuestionFile, number: int) -> Path:
        first, digest = file.shards[number]
        name = hashlib.sha256(f"{self._key} {first} {digest}".encode()).hexdigest()
        return self._shards(file) / f"{number:06d}-{name[:32]}.jsonl"

    def _remove_shards(self, file: QuestionFile) -> None:
        """Remove them, and those of other contents that the file has had or other sizes."""
        for shard in self._shards(file).glob("*.jsonl"):
            shard.unlink()


def _check_identity(file: Path, identity: dict[str, Any]) -> None:
    """Compare what decides the answers with what a run before has noted, or note it.

    Raises:
        ConfigError: naming what differs.
    """
    if not file.exists():
        write_text_atomically(file, to_json(identity, indent=2, sort_keys=True) + "\n")
        return
    try:
        before = read_json_object(file)
        is_ours = before.keys() >= identity.keys()
    except (OSError, ValueError):
        is_ours = False
    if not is_ours:
        raise ConfigError(f"{file} was not written by ptune; move it, or pass another --output")
    if changed := sorted(name for name in identity if identity[name] != before[name]):
        raise ConfigError(
            f"output {file.parent} holds answers of another run ({', '.join(changed)} differ); "
            "pass another --output"
        )
