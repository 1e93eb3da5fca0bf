"""Where records keep their parts: the schemas that are known, and columns named by the user."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ptune.data.messages import says_something
from ptune.errors import ConfigError, DataError

SCHEMA_SAMPLE = 100  # records looked at to find the schema: one odd first record must not decide


@dataclass(frozen=True)
class Columns:
    """Column names given by the user; without `prompt` and `response` the schema is found.

    Without `history`, a column of that very name is still taken as the history, so that a
    conversation is not cut to its last turn because a flag was forgotten; `context` likewise.
    Columns named `system` and `tools` are taken beside any schema.
    """

    prompt: str | None = None
    response: str | None = None
    history: str | None = None
    context: str | None = None


FIND_COLUMNS = Columns()
_NAMED_BESIDE = ("history", "context")


def check_columns(columns: Columns, asks: bool = False) -> None:
    """Refuses columns of which one is missing, or two are the same.

    Args:
        columns: Named by the user.
        asks: Whether a prompt is enough.

    Raises:
        ConfigError: Naming the column and its flags.
    """
    alone = columns.prompt is None if asks else True
    if alone and (columns.prompt is None) != (columns.response is None):
        raise ConfigError(
            f"column {columns.prompt or columns.response!r} is named without its partner; "
            f"give both --prompt-column and --response-column"
        )
    flags: dict[str, str] = {}
    for part in ("prompt", "response", *_NAMED_BESIDE):
        if (name := getattr(columns, part)) is None:
            continue
        flag = f"--{part}-column"
        if name in flags:
            raise ConfigError(
                f"column {name!r} is named by both {flags[name]} and {flag}; name another one"
            )
        flags[name] = flag


@dataclass(frozen=True)
class Schema:
    """Where a record keeps its parts: a prompt and a response column, or one of conversations.

    Attributes:
        columns: of these.
        prompt_tail: column of what follows the prompt.
        history: column of earlier turns.
        context: column of a text that the prompt is about.
        unless: a column beside which it is another schema.
        asks: it is a question that is to be answered; its response may not be there.
    """

    columns: tuple[str, ...]
    prompt_tail: str | None = None
    history: str = "history"
    context: str = "context"
    unless: str | None = None
    asks: bool = False

    @property
    def name(self) -> str:
        """The columns, for people."""
        return "/".join(self.needed)

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that a record must have."""
        return self.columns[:1] if self.asks else self.columns

    @property
    def is_conversation(self) -> bool:
        """Whether its one column holds messages."""
        return len(self.columns) == 1 and not self.asks

    @cached_property
    def used(self) -> set[str | None]:
        """Every column that a record may have."""
        return {*self.columns, self.prompt_tail, *self._beside.values()}

    @cached_property
    def _beside(self) -> dict[str, str]:
        """The columns of the other parts, each of one part: what the user has named comes first."""
        names = {"history": self.history, "context": self.context}
        names |= {"system": "system", "tools": "tools"}
        found: dict[str, str] = {}
        for part, column in sorted(names.items(), key=lambda item: item[0] == item[1]):
            if column not in (*self.columns, *found.values()):
                found[part] = column
        return found

    def fits(self, value: dict[str, Any]) -> bool:
        """Whether a row has the columns."""
        return value.keys() >= {*self.needed} and self.unless not in value

    def beside(self, value: dict[str, Any], part: str) -> Any:
        """What the column of another part says: history, context, system or tools."""
        column = self._beside.get(part)
        return None if column is None else value.get(column)


# In this order: a conversation says all that a prompt and a response beside it could.
SCHEMAS = (
    Schema(("conversations",)),
    Schema(("messages",)),
    Schema(("content", "summary")),
    Schema(("prompt", "response")),
    Schema(("instruction", "output"), prompt_tail="input"),
    Schema(("query", "response")),
    Schema(("question", "answer")),
    Schema(("input", "output"), unless="instruction"),
)
# Of questions: what has its response, too, comes first.
ASKING_SCHEMAS = (
    *SCHEMAS,
    *(replace(schema, asks=True) for schema in SCHEMAS if not schema.is_conversation),
)


class Schemas:
    """The schemas that the records of a file may have.

    Args:
        known: in the order of preference.
        usual: whose absence a record that has none is told of.
    """

    def __init__(self, known: Sequence[Schema], usual: int = 0) -> None:
        self.known, self.usual = known, usual
        self._by_keys: dict[tuple[str, ...], list[Schema]] = {}

    def of(self, value: dict[str, Any]) -> Schema:
        """The first whose columns say something, else the first whose columns are there."""
        keys = tuple(value)
        if (there := self._by_keys.get(keys)) is None:
            there = [schema for schema in self.known if schema.fits(value)]
            there.sort(key=lambda schema: not value.keys() >= {*schema.columns})
            self._by_keys[keys] = there = there or [self.known[self.usual]]
        for schema in there if len(there) > 1 else []:
            if all(says_something(value[name]) for name in schema.needed):
                return schema
        return there[0]


def find_schemas(
    path: str, samples: list[dict[str, Any]], columns: Columns, asks: bool = False
) -> Schemas:
    """Finds the schemas that a file's records may have.

    Args:
        path: Of the file, as messages show it.
        samples: Its first rows.
        columns: Named by the user.
        asks: Whether a prompt is enough.

    Raises:
        DataError: The rows have none that is known, or not the columns that are named.
    """
    seen = list(dict.fromkeys(key for sample in samples for key in sample))
    if columns.prompt is not None and (asks or columns.response is not None):
        schemas = Schemas(_named_schemas(columns.prompt, columns.response, asks))
    else:
        known = ASKING_SCHEMAS if asks else SCHEMAS
        hits = [sum(schema.fits(sample) for sample in samples) for schema in known]
        if not any(hits):
            names = ", ".join(s.name for s in known if s.is_conversation or s.asks == asks)
            which = "two of them with --prompt-column and --response-column"
            if asks:
                which = "the one of the prompts with --prompt-column"
            raise DataError(
                f"columns {', '.join(seen) or '(none)'} of {path} match no known schema ({names}); "
                f"name {which}"
            )
        schemas = Schemas(known, hits.index(max(hits)))
    for part in ("prompt", "response", *_NAMED_BESIDE):
        name = getattr(columns, part)
        if name is not None and name not in seen:
            near = difflib.get_close_matches(name, seen, n=1)
            meant = f"did you mean {near[0]!r}? It" if near else "it"
            hint = f"{meant} has {', '.join(seen) or 'none'}"
            raise DataError(f"column {name!r} (from --{part}-column) is not in {path}; {hint}")
    named = {part: name for part in _NAMED_BESIDE if (name := getattr(columns, part)) is not None}
    usual = schemas.known[schemas.usual]
    for part, name in named.items():
        if name in {*usual.columns, usual.prompt_tail}:
            raise DataError(
                f"column {name!r} (from --{part}-column) is part of {usual.name} in "
                f"{path}, not the {part}; name another one"
            )
    if not named:
        return schemas
    return Schemas([replace(schema, **named) for schema in schemas.known], schemas.usual)


def _named_schemas(prompt: str, response: str | None, asks: bool) -> tuple[Schema, ...]:
    if response is None:
        return (Schema((prompt,), asks=True),)
    whole = Schema((prompt, response))
    return (whole, replace(whole, asks=True)) if asks else (whole,)


def explain_columns(
    error: DataError, name: str, samples: list[dict[str, Any]], is_table: bool, asks: bool = False
) -> DataError:
    """Says what may be the reason that a file has not the columns that are looked for."""
    if not asks and all(sample.keys() == {"text"} for sample in samples):
        return DataError(
            f"{name} has the column 'text' alone, and training needs two texts a record, a prompt "
            f"and its response; part them into two columns"
        )
    if is_table:
        return DataError(f"{error}; if its first line is data, write the column names above it")
    return error
