"""Rows of data files to records: the common schemas, and what is wrong with a row.

Every complaint names file, line and column, and all of them come at once.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptune.data.files import FORMATS, open_data_file
from ptune.data.folders import find_data_files
from ptune.data.rows import BadRecord, Row
from ptune.data.source import check_file
from ptune.errors import ConfigError, DataError
from ptune.files.names import shown

if TYPE_CHECKING:  # `datasets` takes seconds to import, and reading `--help` must not pay for it
    import datasets

MAX_SHOWN = 20
MAX_BAD = 100_000  # more than the good ones: then it is no data, and messages fill the memory
SCHEMA_SAMPLE = 100  # records looked at to find the schema: one odd first record must not decide
CHUNK_SIZE = 10_000
ROLES = dict(
    system="system",
    user="user",
    human="user",
    assistant="assistant",
    gpt="assistant",
    bot="assistant",
)


@dataclass(frozen=True)
class Columns:
    """Column names given by the user; without `prompt` and `response` the schema is found.

    Without `history`, a column of that very name is still taken as the history, so that a
    conversation is not cut to its last turn because a flag was forgotten.
    """

    prompt: str | None = None
    response: str | None = None
    history: str | None = None


FIND_COLUMNS = Columns()


@dataclass(frozen=True)
class Record:
    """One training example: the earlier turns, the prompt and the response to learn."""

    prompt: str
    response: str
    history: tuple[tuple[str, str], ...] = ()
    system: str = ""
    source: str = ""


@dataclass(frozen=True)
class LoadedRecords:
    """What `read_records` found.

    Attributes:
        records: Columns prompt, response, history (list of [query, answer]), system and source
            ("file:line").
        skipped: One message for each record that was left out.
        counts: Good records by file.
        notices: What deserves attention but stopped nothing: how a file was read, what was left
            out.
    """

    records: datasets.Dataset
    skipped: tuple[str, ...]
    counts: dict[str, int]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Schema:
    """Where a record keeps its parts: a prompt and a response column, or one of conversations.

    A file that has the column `unless` is not of this schema: its records would lose that part.
    """

    columns: tuple[str, ...]
    prompt_tail: str | None = None
    history: str | None = None
    unless: str | None = None


_SCHEMAS = (
    _Schema(("content", "summary")),
    _Schema(("prompt", "response"), history="history"),
    _Schema(("instruction", "output"), prompt_tail="input", history="history"),
    _Schema(("query", "response"), history="history"),
    _Schema(("question", "answer"), history="history"),
    _Schema(("input", "output"), history="history", unless="instruction"),
    _Schema(("conversations",)),
    _Schema(("messages",)),
)


def read_records(
    paths: Sequence[Path], columns: Columns = FIND_COLUMNS, skip_bad_records: bool = False
) -> LoadedRecords:
    """Reads data files, one after the other, into one in-memory dataset.

    Args:
        paths: Files in the order in which their records are wanted, or folders of files.
        columns: Column names for all files; by default each file's schema is found by itself.
        skip_bad_records: Leave bad records out and report them in `skipped` instead of raising.

    Raises:
        ConfigError: `columns` names only one of prompt and response.
        DataError: A file cannot be read, has no known schema, or holds bad records.
    """
    if not paths:
        raise DataError(f"no data file given; name at least one of {FORMATS}")
    if (columns.prompt is None) != (columns.response is None):
        raise ConfigError(
            f"column {columns.prompt or columns.response!r} is named without its partner; "
            f"give both --prompt-column and --response-column"
        )
    notices: list[str] = []
    files = find_data_files(paths, notices)
    for file in files:
        check_file(file)
    bad: list[str] = []
    counts: dict[str, int] = {}
    dataset = _build_dataset(_good_records(files, columns, bad, counts, notices))
    total = sum(counts.values())
    if bad and not skip_bad_records:
        raise DataError(_describe_bad(bad, total) + "\nmend them or pass --skip-bad-records")
    if not total:
        raise DataError(f"no good record is left; mend the data files\n{_describe_bad(bad, total)}")
    return LoadedRecords(dataset, tuple(bad), counts, tuple(notices))


def _good_records(
    files: Sequence[Path],
    columns: Columns,
    bad: list[str],
    counts: dict[str, int],
    notices: list[str],
) -> Iterator[Record]:
    """Yields the good records of all files; fills the three last on the way."""
    for file in files:
        name = shown(file)
        counts.setdefault(name, 0)
        for result in _read_file(file, columns, notices):
            if isinstance(result, Record):
                counts[name] += 1
                yield result
                continue
            bad.append(result)
            if len(bad) > MAX_BAD + (good := sum(counts.values())):
                message = _describe_bad(bad, good)
                raise DataError(f"{message}\nreading ended there; leave {name} out, or mend it")


def _describe_bad(bad: list[str], good: int) -> str:
    lines = [f"{len(bad):,} of {good + len(bad):,} records are bad:"]
    lines += [f"  {message}" for message in bad[:MAX_SHOWN]]
    if len(bad) > MAX_SHOWN:
        lines.append(f"  ... and {len(bad) - MAX_SHOWN:,} more")
    return "\n".join(lines)


def _build_dataset(records: Iterator[Record]) -> datasets.Dataset:
    """Puts the records into Arrow tables in chunks, so that no second copy of them is held."""
    chunk = list(itertools.islice(records, CHUNK_SIZE))
    import datasets  # only now: an error in the first records must not wait for it

    text = datasets.Value("string")
    columns = dict.fromkeys(("prompt", "response", "history", "system", "source"), text)
    features = datasets.Features({**columns, "history": [[text]]})
    parts: list[datasets.Dataset] = []
    while chunk or not parts:
        table = {name: [getattr(record, name) for record in chunk] for name in columns}
        parts.append(datasets.Dataset.from_dict(table, features=features))
        chunk = list(itertools.islice(records, CHUNK_SIZE))
    return datasets.concatenate_datasets(parts)


def _read_file(path: Path, columns: Columns, notices: list[str]) -> Iterator[Record | str]:
    """Yields a record, or the complaint about it, for each row of a file."""
    name = shown(path)
    with open_data_file(path, notices) as file:
        head: list[Row] = []
        samples: list[dict[str, Any]] = []
        for row in file.rows:
            head.append(row)
            if isinstance(row[1], dict):
                samples.append(row[1])
            if len(samples) == SCHEMA_SAMPLE or len(head) > MAX_BAD:
                break
        if not head:
            raise DataError(f"{name} holds no records; add some or leave the file out")
        # Without any object there is nothing to find a schema in, and each row is a complaint.
        try:
            schema = _find_schema(name, samples, columns) if samples else _SCHEMAS[0]
        except DataError as error:
            raise _explain_columns(error, name, samples, file.is_table) from None
        for line, value in itertools.chain(head, file.rows):
            source = f"{name}:{line}"
            try:
                yield _to_record(value, schema, source, file.is_table)
            except BadRecord as error:
                yield f"{source}: {error}"


def _explain_columns(
    error: DataError, name: str, samples: list[dict[str, Any]], is_table: bool
) -> DataError:
    """Says what may be the reason that a file has not the columns that are looked for."""
    if all(sample.keys() == {"text"} for sample in samples):
        return DataError(
            f"{name} has the column 'text' alone, and training needs two texts a record, a prompt "
            f"and its response; part them into two columns"
        )
    if is_table:
        return DataError(f"{error}; if its first line is data, write the column names above it")
    return error


def _find_schema(path: str, samples: list[dict[str, Any]], columns: Columns) -> _Schema:
    seen = list(dict.fromkeys(key for sample in samples for key in sample))
    if columns.prompt is not None and columns.response is not None:
        schema = _Schema((columns.prompt, columns.response), history="history")
    else:
        hits = [
            0 if s.unless in seen else sum(sample.keys() >= {*s.columns} for sample in samples)
            for s in _SCHEMAS
        ]
        if not any(hits):
            known = ", ".join("/".join(schema.columns) for schema in _SCHEMAS)
            raise DataError(
                f"columns {', '.join(seen) or '(none)'} of {path} match no known schema ({known}); "
                f"name two of them with --prompt-column and --response-column"
            )
        schema = _SCHEMAS[hits.index(max(hits))]
    if columns.history is not None:
        if len(schema.columns) == 1:
            raise DataError(
                f"--history-column {columns.history!r} does not fit {path}, whose column "
                f"{schema.columns[0]!r} holds whole conversations; drop the flag"
            )
        schema = replace(schema, history=columns.history)
    for part in ("prompt", "response", "history"):
        name = getattr(columns, part)
        if name is not None and name not in seen:
            near = difflib.get_close_matches(name, seen, n=1, cutoff=0.0)
            hint = f"did you mean {near[0]!r}? It has {', '.join(seen)}" if near else "it has none"
            raise DataError(f"column {name!r} (from --{part}-column) is not in {path}; {hint}")
    return schema


def _to_record(value: Any, schema: _Schema, source: str, is_csv: bool) -> Record:
    if isinstance(value, BadRecord):
        raise value
    if not isinstance(value, dict):
        raise BadRecord(f"expected an object with named columns, found {_describe(value)}")
    if len(schema.columns) == 1:
        return _from_conversation(value.get(schema.columns[0]), schema.columns[0], source)
    prompt_column, response_column = schema.columns
    prompt = _check_text(value.get(prompt_column), f"column {prompt_column!r}")
    tail = value.get(schema.prompt_tail)
    if tail is not None:
        tail = _check_text(tail, f"column {schema.prompt_tail!r}", blank_is_fine=True)
        prompt += f"\n{tail}" if tail.strip() else ""
    return Record(
        prompt=prompt,
        response=_check_text(value.get(response_column), f"column {response_column!r}"),
        history=_read_history(value.get(schema.history), f"column {schema.history!r}", is_csv),
        source=source,
    )


def _read_history(value: Any, where: str, is_csv: bool) -> tuple[tuple[str, str], ...]:
    if is_csv and isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):  # what stays a text is refused below
            value = json.loads(value) if value.strip() else None
    if value is None:
        return ()
    if not isinstance(value, list):
        raise BadRecord(f"{where}: expected [query, answer] pairs, found {_describe(value)}")
    pairs = []
    for number, pair in enumerate(value, 1):
        place = f"{where}, pair {number}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRecord(f"{place}: expected [query, answer], found {_describe(pair)}")
        query, answer = (_check_text(part, place, blank_is_fine=True) for part in pair)
        pairs.append((query, answer))
    return tuple(pairs)


def _from_conversation(value: Any, column: str, source: str) -> Record:
    where = f"column {column!r}"
    if not isinstance(value, list) or not value:
        raise BadRecord(f"{where}: expected a list of messages, found {_describe(value)}")
    turns = [_read_message(turn, f"{where}, message {n}") for n, turn in enumerate(value, 1)]
    system = turns.pop(0)[1] if turns[0][0] == "system" else ""
    for number, (role, _) in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        if role != expected:
            place = f"{where}, message {number + 1 + len(value) - len(turns)}"
            raise BadRecord(f"{place}: expected role {expected!r}, found {role!r}")
    if not turns or len(turns) % 2:
        raise BadRecord(f"{where}: expected an answer of the assistant as the last message")
    texts = [text for _, text in turns]
    *history, (prompt, response) = zip(texts[::2], texts[1::2], strict=True)
    return Record(prompt, response, tuple(history), system if system.strip() else "", source)


def _read_message(value: Any, where: str) -> tuple[str, str]:
    """Returns (role, text) of a role/content or from/value message."""
    if not isinstance(value, dict):
        raise BadRecord(f"{where}: expected an object, found {_describe(value)}")
    role_key, text_key = ("from", "value") if "from" in value else ("role", "content")
    name = value.get(role_key)
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        roles = ", ".join(ROLES)
        raise BadRecord(f"{where}: expected {role_key!r} to be {roles}, found {_describe(name)}")
    return role, _check_text(value.get(text_key), where, blank_is_fine=role == "system")


def _check_text(value: Any, where: str, blank_is_fine: bool = False) -> str:
    if not isinstance(value, str) or not (blank_is_fine or value.strip()):
        raise BadRecord(f"{where}: expected text, found {_describe(value)}")
    try:
        value.encode("utf-8")  # Arrow stores UTF-8, and a JSON escape may leave half an emoji
    except UnicodeEncodeError as error:
        half = f"{value[error.start]!r} at character {error.start + 1}"
        raise BadRecord(f"{where}: expected text, found half a surrogate pair {half}") from error
    return value


def _describe(value: Any) -> str:
    """A wrong value in a few words."""
    if isinstance(value, str):
        return repr(value[:40] + "..." * (len(value) > 40)) if value.strip() else "blank text"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, dict):
        return "an object"
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else json.dumps(value)
    return f"the number {str(value)[:40]}"
