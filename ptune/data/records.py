"""Rows of data files to records: the common schemas, and what is wrong with a row.

Every complaint names file, line and column, and all of them come at once.  What a row says and no
record holds is counted and named.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptune.base.folder import Generation
from ptune.data.context import holds_context
from ptune.data.files import FORMATS, open_data_file
from ptune.data.folders import find_data_files
from ptune.data.messages import (
    ASSISTANT,
    SYSTEM,
    USER,
    Message,
    check_text,
    describe,
    read_messages,
    read_tools,
    says_something,
    with_system,
)
from ptune.data.prompt import Conversation, learns, refusal
from ptune.data.rows import BadRecord, Row
from ptune.data.schemas import (
    ASKING_SCHEMAS,
    FIND_COLUMNS,
    SCHEMA_SAMPLE,
    SCHEMAS,
    Columns,
    Schema,
    Schemas,
    check_columns,
    explain_columns,
    find_schemas,
)
from ptune.data.source import check_file
from ptune.data.tool_forms import ToolForm, tool_form
from ptune.errors import DataError
from ptune.files.json_decoding import DECODER, RepeatedKey
from ptune.files.names import shown

if TYPE_CHECKING:  # `datasets` takes seconds to import, and reading `--help` must not pay for it
    import datasets
    import pyarrow

MAX_SHOWN = 20
MAX_BAD = 100_000  # more than the good ones: then it is no data, and messages fill the memory
CHUNK_SIZE = 1_000  # records held as objects at once


@dataclass(frozen=True)
class Record:
    """A conversation; its last message is the answer to learn, if it is the assistant's.

    Attributes:
        messages: oldest first.
        source: file and line.
        line: of the file; of Parquet and Arrow the number of the record.
    """

    messages: tuple[Message, ...]
    source: str = ""
    line: int = 0

    @property
    def answer(self) -> Message | None:
        """What is to be learnt, or compared with; None in a question."""
        last = self.messages[-1]
        return last if last.role == ASSISTANT else None

    @property
    def asked(self) -> tuple[Message, ...]:
        """What stands before the answer."""
        return self.messages if self.answer is None else self.messages[:-1]


@dataclass(frozen=True)
class LoadedRecords:
    """What `read_records` found.

    Attributes:
        records: Columns messages (each with the fields of `Message`; the last is the answer to
            learn) and source ("file:line").
        skipped: One message for each record that was left out.
        counts: Good records by file.
        notices: What deserves attention but stopped nothing: how a file was read, what of it is
            not used.
    """

    records: datasets.Dataset
    skipped: tuple[str, ...]
    counts: dict[str, int]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """How records are read.

    Attributes:
        columns: Column names for all files; by default each record's schema is found by itself.
        generation: Whose prompt must have a place for all of a record, and something to learn of
            it; None for any.
        asks: They are questions: responses may be there.
    """

    columns: Columns = FIND_COLUMNS
    generation: Generation | None = None
    asks: bool = False


@dataclass
class Found:
    """What reading finds out beside the records.

    Attributes:
        bad: One message for each bad record.
        counts: Good records by file.
        unused: Records by what they say and is not used.
        schemas: Records by schema.
        files: Notices of how files were read.
    """

    bad: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    schemas: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)

    def check(self, skip_bad_records: bool) -> None:
        """Refuses bad records, or that there are no others.

        Args:
            skip_bad_records: Leave them out.

        Raises:
            DataError: Naming the first ones.
        """
        total = sum(self.counts.values())
        if self.bad and not skip_bad_records:
            raise DataError(
                _describe_bad(self.bad, total) + "\nmend them or pass --skip-bad-records"
            )
        if not total:
            raise DataError(
                f"no good record is left; mend the data files\n{_describe_bad(self.bad, total)}"
            )

    def notices(self) -> tuple[str, ...]:
        """What deserves attention but stopped nothing."""
        said = [*self.files]
        if len(self.schemas) > 1:
            kinds = ", ".join(f"{count:,} of {name}" for name, count in self.schemas.items())
            said.append(f"the records have several schemas: {kinds}")
        if unused := sorted(self.unused.items(), key=lambda item: (-item[1], item[0])):
            names = [f"{name} ({n:,} record{'s' * (n > 1)})" for name, n in unused[:MAX_SHOWN]]
            more = f", and {len(unused) - MAX_SHOWN:,} more" if len(unused) > MAX_SHOWN else ""
            said.append(f"not used: {', '.join(names)}{more}")
        return tuple(said)


def read_records(
    paths: Sequence[Path],
    columns: Columns = FIND_COLUMNS,
    skip_bad_records: bool = False,
    generation: Generation | None = None,
) -> LoadedRecords:
    """Reads data files, one after the other, into one in-memory dataset.

    Args:
        paths: Files in the order in which their records are wanted, or folders of files.
        columns: Column names for all files; by default each record's schema is found by itself.
        skip_bad_records: Leave bad records out and report them in `skipped` instead of raising.
        generation: Whose prompt must have a place for all of a record, and something to learn of
            it; None for any.

    Raises:
        ConfigError: `columns` names only one of prompt and response, or one column twice.
        DataError: A file cannot be read, has no known schema, or holds bad records.
    """
    if not paths:
        raise DataError(f"no data file given; name at least one of {FORMATS}")
    check_columns(columns)
    found = Found()
    files = find_data_files(paths, found.files)
    for file in files:
        check_file(file)
    reading = Reading(columns, generation)
    good = itertools.chain.from_iterable(good_records(file, reading, found) for file in files)
    dataset = _build_dataset(good)
    found.check(skip_bad_records)
    return LoadedRecords(dataset, tuple(found.bad), found.counts, found.notices())


def good_records(file: Path, reading: Reading, found: Found) -> Iterator[Record]:
    """Yields the good records of a file, one at a time.

    Args:
        file: One of `find_data_files`.
        reading: How.
        found: Is filled on the way; the same for all files.

    Raises:
        DataError: The file cannot be read, has no known schema, or hardly any good record.
    """
    name = shown(file)
    found.counts.setdefault(name, 0)
    for result in _read_file(file, reading, found):
        if isinstance(result, Record):
            found.counts[name] += 1
            yield result
            continue
        found.bad.append(result)
        if len(found.bad) > MAX_BAD + (good := sum(found.counts.values())):
            message = _describe_bad(found.bad, good)
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
    import datasets  # only now: an error in the first records must not wait for them
    import pyarrow

    tables = [_to_table(chunk)]
    while chunk := list(itertools.islice(records, CHUNK_SIZE)):
        tables.append(_to_table(chunk))
    # With a name of its own, or the library would make one of all the texts.
    return datasets.Dataset(pyarrow.concat_tables(tables), fingerprint="records")


def _to_table(records: Sequence[Record]) -> pyarrow.Table:
    import pyarrow

    said = [message for record in records for message in record.messages]
    text = pyarrow.string()
    kinds = {"role": text, "content": text, "metadata": text, "tools": text}
    kinds |= {"learn": pyarrow.bool_(), "context": text}
    columns = [pyarrow.array([*map(attrgetter(name), said)], kinds[name]) for name in kinds]
    starts = itertools.accumulate((len(record.messages) for record in records), initial=0)
    messages = pyarrow.ListArray.from_arrays(
        pyarrow.array(starts, pyarrow.int32()),
        pyarrow.StructArray.from_arrays(columns, [*kinds]),
    )
    sources = pyarrow.array([record.source for record in records], text)
    return pyarrow.table({"messages": messages, "source": sources})


def _read_file(path: Path, reading: Reading, found: Found) -> Iterator[Record | str]:
    """Yields a record, or the complaint about it, for each row of a file."""
    name = shown(path)
    with open_data_file(path, found.files) as file:
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
        schemas = Schemas(ASKING_SCHEMAS if reading.asks else SCHEMAS)
        try:
            if samples:
                schemas = find_schemas(name, samples, reading.columns, reading.asks)
        except DataError as error:
            raise explain_columns(error, name, samples, file.is_table, reading.asks) from None
        for line, value in itertools.chain(head, file.rows):
            source = f"{name}:{line}"
            try:
                messages = _to_messages(value, schemas, reading, found)
                yield Record(tuple(messages), source, line)
            except BadRecord as error:
                yield f"{source}: {error}"


def _to_messages(value: Any, schemas: Schemas, reading: Reading, found: Found) -> list[Message]:
    if isinstance(value, BadRecord):
        raise value
    if not isinstance(value, dict):
        raise BadRecord(f"expected an object with named columns, found {describe(value)}")
    generation, asks = reading.generation, reading.asks
    schema, form = schemas.of(value), tool_form(generation)
    unused = {repr(key) for key in value.keys() - schema.used if says_something(value[key])}
    if schema.is_conversation:
        where = f"column {schema.columns[0]!r}"
        said = _decoded(value.get(schema.columns[0]), where)
        messages = read_messages(said, where, unused, form=form, asks=asks)
    else:
        answers = [Message(ASSISTANT, _text(value, column)) for column in schema.needed[1:]]
        messages = [Message(USER, _prompt(value, schema)), *answers]
    if (history := schema.beside(value, "history")) is not None:
        messages = _read_history(history, f"column {schema.history!r}", unused, messages, form)
    if (context := schema.beside(value, "context")) is not None:
        messages = _about(context, f"column {schema.context!r}", messages)
    messages = with_system(messages, *_instruction(value, schema), form)
    _check_use(messages, generation, asks)
    learns_last = not asks and generation is not None and not generation.has_roles
    if learns_last and any(m.learn for m in messages[:-1]):
        unused.add("'loss' of earlier answers")
    if unused:
        found.unused.update(unused)
    found.schemas[schema.name] += 1
    return messages


def _prompt(value: dict[str, Any], schema: Schema) -> str:
    prompt = _text(value, schema.columns[0])
    tail = value.get(schema.prompt_tail) if schema.prompt_tail else None
    if tail is None:
        return prompt
    tail = check_text(tail, f"column {schema.prompt_tail!r}", blank_is_fine=True)
    return prompt + (f"\n{tail}" if tail.strip() else "")


def _text(value: dict[str, Any], column: str) -> str:
    return check_text(value.get(column), f"column {column!r}")


def _decoded(value: Any, where: str) -> Any:
    """A list that CSV, or a table made of it, holds as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return DECODER.decode(value) if value.strip() else None
    except RepeatedKey as error:
        raise BadRecord(f"{where}: {error}") from error
    except (ValueError, RecursionError):  # what stays a text is refused later
        return value


def _read_history(
    value: Any, where: str, unused: set[str], messages: list[Message], form: ToolForm
) -> list[Message]:
    """Put earlier turns, [query, answer] pairs or messages, in front of a record's own."""
    value = _decoded(value, where)
    if value is None or value == []:
        return messages
    if not isinstance(value, list):
        raise BadRecord(f"{where}: expected [query, answer] pairs, found {describe(value)}")
    if isinstance(value[0], dict):
        earlier = read_messages(value, where, unused, form=form)
    else:
        earlier = [said for n, pair in enumerate(value, 1) for said in _read_pair(pair, where, n)]
    if messages[0].role != SYSTEM:
        return earlier + messages
    if earlier[0].role == SYSTEM:
        raise BadRecord(f"{where}: a system message beside the record's own; leave one of them out")
    return [messages[0], *earlier, *messages[1:]]


def _read_pair(pair: Any, where: str, number: int) -> tuple[Message, Message]:
    place = f"{where}, pair {number}"
    if not isinstance(pair, list) or len(pair) != 2:
        raise BadRecord(f"{place}: expected [query, answer], found {describe(pair)}")
    query, answer = (check_text(part, place, blank_is_fine=True) for part in pair)
    return Message(USER, query), Message(ASSISTANT, answer)


def _about(value: Any, where: str, messages: list[Message]) -> list[Message]:
    """Put a context beside the last question; a blank one is none."""
    context = check_text(value, where, blank_is_fine=True)
    if not context.strip():
        return messages
    index = max(i for i, message in enumerate(messages) if message.role == USER)
    if holds_context(messages[index].content):
        raise BadRecord(
            f"{where}: a context beside a question that holds one already, as 已知信息; "
            "leave one of them out"
        )
    asked = replace(messages[index], context=context)
    return [*messages[:index], asked, *messages[index + 1 :]]


def _instruction(value: dict[str, Any], schema: Schema) -> tuple[str, str]:
    """What the columns of the system instruction and of the tools say."""
    text = schema.beside(value, "system")
    text = "" if text is None else check_text(text, "column 'system'", blank_is_fine=True)
    return text, read_tools(schema.beside(value, "tools"), "column 'tools'")


def _check_use(messages: Sequence[Message], generation: Generation | None, asks: bool) -> None:
    """Refuse what a generation has no prompt for, or nothing to learn of if it is to be learnt."""
    record = Record(tuple(messages))
    conversation = Conversation(record.asked, record.answer)
    if generation is not None and (reason := refusal(generation, conversation)):
        raise BadRecord(reason)
    if asks or learns(generation or Generation.CHATGLM3, conversation):
        return
    which = "every answer"
    if generation and not generation.has_roles:
        which = f"the last answer, all that {generation.model_name} learns,"
    raise BadRecord(f"{which} is marked not to be learnt; leave the mark or the record out")
