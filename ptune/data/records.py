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

from ptune.data.files import BadRecord, check_file, read_rows
from ptune.errors import ConfigError, DataError

if TYPE_CHECKING:  # `datasets` takes seconds to import, and reading `--help` must not pay for it
    import datasets

MAX_SHOWN = 20
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
    """

    records: datasets.Dataset
    skipped: tuple[str, ...]
    counts: dict[str, int]


@dataclass(frozen=True)
class _Schema:
    """Where a record keeps its parts: a prompt and a response column, or one of conversations."""

    columns: tuple[str, ...]
    prompt_tail: str | None = None
    history: str | None = None


_SCHEMAS = (
    _Schema(("content", "summary")),
    _Schema(("prompt", "response"), history="history"),
    _Schema(("instruction", "output"), prompt_tail="input", history="history"),
    _Schema(("conversations",)),
    _Schema(("messages",)),
)


def read_records(
    paths: Sequence[Path], columns: Columns = FIND_COLUMNS, skip_bad_records: bool = False
) -> LoadedRecords:
    """Reads data files, one after the other, into one in-memory dataset.

    Args:
        paths: Files in the order in which their records are wanted.
        columns: Column names for all files; by default each file's schema is found by itself.
        skip_bad_records: Leave bad records out and report them in `skipped` instead of raising.

    Raises:
        ConfigError: `columns` names only one of prompt and response.
        DataError: A file cannot be read, has no known schema, or holds bad records.
    """
    if not paths:
        raise DataError("no data file given; name at least one JSON, JSON Lines or CSV file")
    if (columns.prompt is None) != (columns.response is None):
        raise ConfigError(
            f"column {columns.prompt or columns.response!r} is named without its partner; "
            f"give both --prompt-column and --response-column"
        )
    for path in paths:
        check_file(path)
    bad: list[str] = []
    counts: dict[str, int] = {}
    dataset = _build_dataset(_good_records(paths, columns, bad, counts))
    total = sum(counts.values())
    if bad and not skip_bad_records:
        raise DataError(_describe_bad(bad, total) + "\nmend them or pass --skip-bad-records")
    if not total:
        raise DataError(f"no good record is left; mend the data files\n{_describe_bad(bad, total)}")
    return LoadedRecords(records=dataset, skipped=tuple(bad), counts=counts)


def _good_records(
    paths: Sequence[Path], columns: Columns, bad: list[str], counts: dict[str, int]
) -> Iterator[Record]:
    """Yields the good records of all files; fills `bad` and `counts` on the way."""
    for path in paths:
        name = str(path)
        counts.setdefault(name, 0)
        for result in _read_file(path, columns):
            if isinstance(result, Record):
                counts[name] += 1
                yield result
            else:
                bad.append(result)


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


def _read_file(path: Path, columns: Columns) -> Iterator[Record | str]:
    """Yields a record, or the complaint about it, for each item of a file."""
    is_csv = path.name.lower().endswith((".csv", ".csv.gz"))
    items = read_rows(path, is_csv)
    head: list[tuple[int, Any]] = []
    samples: list[dict[str, Any]] = []
    for item in items:
        head.append(item)
        if isinstance(item[1], dict):
            samples.append(item[1])
        if len(samples) == SCHEMA_SAMPLE:
            break
    if not head:
        raise DataError(f"{path} holds no records; add some or leave the file out")
    # Without any object there is nothing to find a schema in, and each item is a complaint.
    schema = _find_schema(path, samples, columns) if samples else _SCHEMAS[0]
    for line, value in itertools.chain(head, items):
        source = f"{path}:{line}"
        try:
            yield _to_record(value, schema, source, is_csv)
        except BadRecord as error:
            yield f"{source}: {error}"


def _find_schema(path: Path, samples: list[dict[str, Any]], columns: Columns) -> _Schema:
    seen = list(dict.fromkeys(key for sample in samples for key in sample))
    if columns.prompt is not None and columns.response is not None:
        schema = _Schema((columns.prompt, columns.response), history="history")
    else:
        hits = [sum(sample.keys() >= {*s.columns} for sample in samples) for s in _SCHEMAS]
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
        raise BadRecord(f"expected an object with named columns, found {describe(value)}")
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
        raise BadRecord(f"{where}: expected [query, answer] pairs, found {describe(value)}")
    pairs = []
    for number, pair in enumerate(value, 1):
        place = f"{where}, pair {number}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRecord(f"{place}: expected [query, answer], found {describe(pair)}")
        query, answer = (_check_text(part, place, blank_is_fine=True) for part in pair)
        pairs.append((query, answer))
    return tuple(pairs)


def _from_conversation(value: Any, column: str, source: str) -> Record:
    where = f"column {column!r}"
    if not isinstance(value, list) or not value:
        raise BadRecord(f"{where}: expected a list of messages, found {describe(value)}")
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
        raise BadRecord(f"{where}: expected an object, found {describe(value)}")
    role_key, text_key = ("from", "value") if "from" in value else ("role", "content")
    name = value.get(role_key)
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        roles = ", ".join(ROLES)
        raise BadRecord(f"{where}: expected {role_key!r} to be {roles}, found {describe(name)}")
    return role, _check_text(value.get(text_key), where, blank_is_fine=role == "system")


def _check_text(value: Any, where: str, blank_is_fine: bool = False) -> str:
    if not isinstance(value, str) or not (blank_is_fine or value.strip()):
        raise BadRecord(f"{where}: expected text, found {describe(value)}")
    try:
        value.encode("utf-8")  # Arrow stores UTF-8, and a JSON escape may leave half an emoji
    except UnicodeEncodeError as error:
        half = f"{value[error.start]!r} at character {error.start + 1}"
        raise BadRecord(f"{where}: expected text, found half a surrogate pair {half}") from error
    return value


def describe(value: Any) -> str:
    """Says what a wrong value is, in a few words."""
    if isinstance(value, str):
        return repr(value[:40] + "..." * (len(value) > 40)) if value.strip() else "blank text"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, dict):
        return "an object"
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else json.dumps(value)
    return f"the number {str(value)[:40]}"
