"""Rendered training data on disk, kept for the next run in `ptune/examples` of the user's cache.

An entry is one Arrow file, `<key>-<digest>.arrow`: the key is of everything that its rows depend
on, the digest of its content.  What is damaged, half-written or cannot be written costs time and
nothing else.  The rows are mapped from the file, so that memory does not grow with them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import sentencepiece
import tiktoken
import tokenizers

from ptune import __version__
from ptune.base.folder import Generation
from ptune.data.example_questions import ExampleQuestion, pick_questions
from ptune.data.examples import (
    EXAMPLE_SCHEMA,
    Truncation,
    render_batches,
    render_records,
    split_truncation,
)
from ptune.data.folders import find_data_files
from ptune.data.prompt import Lengths
from ptune.data.records import LoadedRecords, read_records
from ptune.data.schemas import Columns
from ptune.errors import DataError
from ptune.files.cache_folder import cache_folder
from ptune.files.manifest import digest

MIN_BYTES = 10**6  # of data files; less is rendered in less than half a second
MAX_BYTES = 10 * 10**9  # of all entries together; those not used for longest go first
_ABANDONED_AFTER = 24 * 3600  # seconds after which a half-written file has no writer
_ABOUT = b"ptune"
_CODE = Path(__file__).parent  # this package decides on the rows, as tokenizer and library do


@dataclass(frozen=True)
class PreparedExamples:
    """Data files as training sees them.

    Attributes:
        rendered: all records, with the columns of `EXAMPLE_SCHEMA`.
        skipped: one message for each record that was left out.
        notices: what the user should know of the data.
        questions: some of the data's, to try what was trained with.
    """

    rendered: datasets.Dataset
    skipped: tuple[str, ...]
    notices: tuple[str, ...]
    questions: tuple[ExampleQuestion, ...]

    def examples(self, rows: Sequence[int] | None = None) -> tuple[datasets.Dataset, Truncation]:
        """`input_ids`, `labels` and `length` of what can be learnt from, and what was cut.

        Args:
            rows: indices of the records that are wanted; None wants all, in their order.
        """
        return split_truncation(self.rendered, rows)


def prepare_examples(
    paths: Sequence[Path],
    columns: Columns,
    skip_bad_records: bool,
    tokenizer: Any,
    generation: Generation,
    lengths: Lengths,
) -> PreparedExamples:
    """Read and render data files, or take what an earlier run has made of the same.

    Args:
        paths: data files and folders, in the order in which their records are wanted.
        columns: column names for all files.
        skip_bad_records: leave bad records out.
        tokenizer: from `load_tokenizer`.
        generation: whose prompt to use.
        lengths: room for both sides.

    Raises:
        ConfigError: from `read_records`.
        DataError: from `read_records`; bad data is never in the cache.
    """

    def current_key() -> str | None:
        options = [dataclasses.asdict(columns), skip_bad_records]
        return _key(paths, options, tokenizer, generation, lengths)

    key = current_key()
    if key and (found := _find(key)):
        return found
    loaded = read_records(paths, columns, skip_bad_records, generation)
    if key and key == current_key():  # no file has changed while it was read
        with contextlib.suppress(OSError):  # a full or read-only disk
            _store(key, loaded, tokenizer, generation, lengths)
            if found := _find(key):
                return found
    rendered = render_records(loaded.records, tokenizer, generation, lengths)
    questions = pick_questions(loaded.records)
    return PreparedExamples(rendered, loaded.skipped, loaded.notices, questions)


def _key(
    paths: Sequence[Path],
    options: list[Any],
    tokenizer: Any,
    generation: Generation,
    lengths: Lengths,
) -> str | None:
    """Name everything that rendered rows depend on; None for what is not to be kept."""
    try:
        left_out: list[str] = []
        files = find_data_files(paths, left_out)
        # A pipe can be read only once, and not here.
        if not files or not all(file.is_file() for file in files):
            return None
        if sum(file.stat().st_size for file in files) < MIN_BYTES:
            return None
        parts = [
            [__version__, *(digest(file) for file in sorted(_CODE.glob("*.py")))],
            # The name tells the format, and stands in the messages about skipped records.
            [[str(file), digest(file)] for file in files],
            left_out,
            options,
            [type(tokenizer).__name__, tokenizer.content_digest()],
            [sentencepiece.__version__, tiktoken.__version__, tokenizers.__version__],
            generation.value,
            dataclasses.asdict(lengths),
        ]
    except (OSError, DataError):  # said by whoever reads the data
        return None
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _folder() -> Path:
    return cache_folder() / "examples"


def _find(key: str) -> PreparedExamples | None:
    """Take rows from the cache; what is damaged is removed."""
    for file in sorted(_folder().glob(f"{key}-*.arrow")):
        with contextlib.suppress(OSError):
            if found := _read(file, key):
                os.utime(file)  # used last now
                return found
            file.unlink()
    return None


def _read(file: Path, key: str) -> PreparedExamples | None:
    """Map an entry into memory; None where it is not what its name says."""
    if digest(file) != file.stem.rpartition("-")[2]:
        return None
    try:
        with pyarrow.memory_map(str(file)) as source:
            schema = pyarrow.ipc.open_stream(source).schema
        about = json.loads((schema.metadata or {}).get(_ABOUT, b"{}"))
        rendered = datasets.Dataset.from_file(str(file))
        if not schema.equals(EXAMPLE_SCHEMA) or about.get("key") != key:
            return None
        if len(rendered) != about["records"]:
            return None
        questions = tuple(ExampleQuestion(**said) for said in about["questions"])
        skipped, notices = (tuple(about[name]) for name in ("skipped", "notices"))
        return PreparedExamples(rendered, skipped, notices, questions)
    except (ValueError, KeyError, TypeError):  # Arrow's own errors are ValueErrors
        return None


def _store(
    key: str, loaded: LoadedRecords, tokenizer: Any, generation: Generation, lengths: Lengths
) -> None:
    """Render into a new entry, which is there in full or not at all.

    Several processes may do so at once: what they write is the same.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # the texts can be read from the ids
    handle, name = tempfile.mkstemp(prefix=".", suffix=".partial", dir=folder)
    os.close(handle)
    partial = Path(name)
    about = {"key": key, "records": len(loaded.records)}
    about |= {"skipped": loaded.skipped, "notices": loaded.notices}
    about["questions"] = [*map(dataclasses.asdict, pick_questions(loaded.records))]
    schema = EXAMPLE_SCHEMA.with_metadata({_ABOUT: json.dumps(about).encode()})
    try:
        with pyarrow.OSFile(name, "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
            for batch in render_batches(loaded.records, tokenizer, generation, lengths):
                writer.write_batch(batch)
        entry = folder / f"{key}-{digest(partial)}.arrow"
        partial.replace(entry)
    finally:
        partial.unlink(missing_ok=True)
    _make_room(entry)


def _make_room(newest: Path) -> None:
    """Remove the entries not used for longest, and what a killed process has left half-written."""
    with contextlib.suppress(OSError):  # another process may be at it, too
        for partial in newest.parent.glob(".*.partial"):
            if time.time() - partial.stat().st_mtime > _ABANDONED_AFTER:
                partial.unlink()
        entries = {file: file.stat() for file in newest.parent.glob("*.arrow") if file != newest}
        room = MAX_BYTES - newest.stat().st_size
        for file in sorted(entries, key=lambda f: entries[f].st_mtime, reverse=True):
            room -= entries[file].st_size
            if room < 0:
                file.unlink()
