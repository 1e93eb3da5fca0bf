"""Data files to records: JSON array, JSON Lines and CSV, plain or gzipped, in the common schemas.

Every complaint names file, line and column, and all of them come at once.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
_ARRAY_MARK = re.compile(r"[ \t\r\n]*([\[\],]?)[ \t\r\n]*")


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


class _BadRecord(ValueError):
    """One record cannot be used; the message leaves out file and line."""


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
        _check_file(path)
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


def _check_file(path: Path) -> None:
    if not path.exists():
        raise DataError(f"data file {path} does not exist; check the path")
    if path.is_dir():
        raise DataError(f"data file {path} is a directory; name a file in it")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"data file {path} is empty; write records into it or leave it out")


def _read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a plain or gzipped UTF-8 file, line ends kept, without a BOM."""
    offset = number = 0
    try:
        with (
            path.open("rb") as raw,
            gzip.open(raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw as data,
        ):
            for number, line in enumerate(data, 1):
                text = line.decode("utf-8")
                offset += len(line)
                yield text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: byte 0x{error.object[error.start]:02x} at byte offset "
            f"{offset + error.start} of the text is not UTF-8; convert the file, for example "
            f"from GBK with `iconv -f GB18030 -t UTF-8`"
        ) from error
    except (OSError, EOFError, zlib.error) as error:  # the last two: damaged gzip data
        raise DataError(f"{path}:{number + 1}: cannot be read ({error}); check the file") from error


def _read_items(path: Path, is_csv: bool) -> Iterator[tuple[int, Any]]:
    """Yields (line, value); the value is a `_BadRecord` where the text could not be parsed."""
    lines = _read_lines(path)
    if is_csv:
        yield from _parse_csv(path, lines)
        return
    start: list[str] = []
    for line in lines:
        start.append(line)
        if line.strip():
            break
    first = start[-1].strip() if start else ""
    lines = itertools.chain(start, lines)
    if first.startswith("["):
        yield from _parse_array(path, "".join(lines))
    elif first == "{":
        raise DataError(
            f"{path}:{len(start)}: one JSON object over several lines is not a list of records; "
            f"put the records into a JSON array or write one record per line"
        )
    else:
        yield from _parse_json_lines(lines)


def _parse_json_lines(lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # not only JSONDecodeError: also huge numbers
            place = getattr(error, "pos", 0) + 1
            value = _BadRecord(f"broken JSON ({getattr(error, 'msg', error)} at character {place})")
        yield number, value


def _parse_array(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Decodes element by element, because only so each record's line is known.

    A syntax error ends it: where the next record starts can then only be guessed.
    """
    decoder = json.JSONDecoder()
    mark, position, counted, line = *_read_mark(text, 0), 0, 1
    if text.startswith("]", position):
        mark, position = _read_mark(text, position)
    while mark != "]":
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            problem = str(getattr(error, "msg", error))
            raise _broken_array(path, text, getattr(error, "pos", position), problem) from error
        yield line, value
        mark, position = _read_mark(text, position)
        if mark not in (",", "]"):
            raise _broken_array(path, text, position, "',' or ']' expected after a record")
    if position < len(text):
        raise _broken_array(path, text, position, "more text after the end of the array")


def _read_mark(text: str, position: int) -> tuple[str, int]:
    """Returns the bracket or comma at a position ("" if there is none) and where it goes on."""
    match = _ARRAY_MARK.match(text, position)
    assert match is not None  # the pattern matches the empty string too
    return match[1], match.end()


def _broken_array(path: Path, text: str, position: int, problem: str) -> DataError:
    line = 1 + text.count("\n", 0, position)
    return DataError(f"{path}:{line}: broken JSON array ({problem}); mend it, it cannot be skipped")


def _parse_csv(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    reader = csv.reader(lines, strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1  # where the record starts: a quoted field may hold line ends
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, _BadRecord(f"not readable as CSV ({error})")
            continue
        if not header:
            header = [name.strip() for name in row]
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                raise DataError(f"{path}:{line}: column {twice[0]!r} occurs twice; rename one")
        elif row and len(row) != len(header):
            yield line, _BadRecord(f"expected {len(header)} fields, found {len(row)}")
        elif row:  # a blank line gives no fields at all
            yield line, dict(zip(header, row, strict=True))


def _read_file(path: Path, columns: Columns) -> Iterator[Record | str]:
    """Yields a record, or the complaint about it, for each item of a file."""
    is_csv = path.name.lower().endswith((".csv", ".csv.gz"))
    items = _read_items(path, is_csv)
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
        except _BadRecord as error:
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
    if isinstance(value, _BadRecord):
        raise value
    if not isinstance(value, dict):
        raise _BadRecord(f"expected an object with named columns, found {_describe(value)}")
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
        raise _BadRecord(f"{where}: expected [query, answer] pairs, found {_describe(value)}")
    pairs = []
    for number, pair in enumerate(value, 1):
        place = f"{where}, pair {number}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise _BadRecord(f"{place}: expected [query, answer], found {_describe(pair)}")
        query, answer = (_check_text(part, place, blank_is_fine=True) for part in pair)
        pairs.append((query, answer))
    return tuple(pairs)


def _from_conversation(value: Any, column: str, source: str) -> Record:
    where = f"column {column!r}"
    if not isinstance(value, list) or not value:
        raise _BadRecord(f"{where}: expected a list of messages, found {_describe(value)}")
    turns = [_read_message(turn, f"{where}, message {n}") for n, turn in enumerate(value, 1)]
    system = turns.pop(0)[1] if turns[0][0] == "system" else ""
    for number, (role, _) in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        if role != expected:
            place = f"{where}, message {number + 1 + len(value) - len(turns)}"
            raise _BadRecord(f"{place}: expected role {expected!r}, found {role!r}")
    if not turns or len(turns) % 2:
        raise _BadRecord(f"{where}: expected an answer of the assistant as the last message")
    texts = [text for _, text in turns]
    *history, (prompt, response) = zip(texts[::2], texts[1::2], strict=True)
    return Record(prompt, response, tuple(history), system if system.strip() else "", source)


def _read_message(value: Any, where: str) -> tuple[str, str]:
    """Returns (role, text) of a role/content or from/value message."""
    if not isinstance(value, dict):
        raise _BadRecord(f"{where}: expected an object, found {_describe(value)}")
    role_key, text_key = ("from", "value") if "from" in value else ("role", "content")
    name = value.get(role_key)
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        roles = ", ".join(ROLES)
        raise _BadRecord(f"{where}: expected {role_key!r} to be {roles}, found {_describe(name)}")
    return role, _check_text(value.get(text_key), where, blank_is_fine=role == "system")


def _check_text(value: Any, where: str, blank_is_fine: bool = False) -> str:
    if not isinstance(value, str) or not (blank_is_fine or value.strip()):
        raise _BadRecord(f"{where}: expected text, found {_describe(value)}")
    try:
        value.encode("utf-8")  # Arrow stores UTF-8, and a JSON escape may leave half an emoji
    except UnicodeEncodeError as error:
        half = f"{value[error.start]!r} at character {error.start + 1}"
        raise _BadRecord(f"{where}: expected text, found half a surrogate pair {half}") from error
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
