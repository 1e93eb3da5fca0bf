"""JSON to rows: an array, an object that holds one, or JSON Lines; in pieces, never as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ptune.data.encodings import split_lines
from ptune.data.rows import MAX_RECORD, BadRecord, Rows
from ptune.errors import DataError
from ptune.files.json_decoding import DECODER, RepeatedKey, problem_of

_ANY_KEYS = json.JSONDecoder()
_CUT_NUMBER = re.compile(r"[-+.0-9eE]*\Z")
_SPACE = re.compile(r"[ \t\r\n]*")
# Columns of one record that hold a list of objects; such a list is not one of records.
_OF_A_RECORD = {"messages", "conversations", "conversation", "history", "tools", "functions"}
_AS_LIST = "put the records into a JSON array or write one record per line"


def read_json(name: str, texts: Iterator[str], notices: list[str]) -> Rows:
    """Yields the values of JSON text.

    Args:
        name: Of the file, as messages show it.
        texts: Its text in pieces.
        notices: Is told what is left out.

    Raises:
        DataError: What is broken cannot be skipped, or there is no list of records.
    """
    text = _JsonText(name, texts)
    start = text.peek()
    if start == "[":
        yield from _read_array(text)
    elif start == "{" and text.is_open_line():
        yield from _read_holder(text, notices)
    else:
        yield from _read_lines(name, text.line, text.remainder(), notices)


def _read_lines(name: str, begin: int, texts: Iterator[str], notices: list[str]) -> Rows:
    rows = _parse_lines(split_lines(name, texts, begin), begin)
    first = next(rows, None)
    if first is None:
        return
    second = next(rows, None)
    line, value = first
    # A record has two texts of its own, whatever else it holds.
    if second is None and isinstance(value, dict) and _count_texts(value) < 2:
        keys = [key for key, item in value.items() if _holds_records(key, item)]
        if len(keys) > 1:
            raise _two_lists(f"{name}:{line}", keys[0], keys[1])
        if keys:
            notices.extend(_left_out(name, keys[0], [*value]))
            yield from ((line, record) for record in value[keys[0]])
            return
    yield first
    if second is not None:
        yield second
    yield from rows


def _parse_lines(lines: Iterator[str], begin: int) -> Rows:
    for number, line in enumerate(lines, begin):
        if not line.strip():
            continue
        try:
            value = DECODER.decode(line)
        except RepeatedKey as error:
            value = BadRecord(str(error))
        except (ValueError, RecursionError) as error:  # not only JSONDecodeError: also huge numbers
            value = BadRecord(f"broken JSON ({_explain(line, error)})")
        yield number, value


def _explain(line: str, error: ValueError | RecursionError) -> str:
    """What is wrong with a line, with the mistakes that are made most."""
    what = problem_of(error)
    if not isinstance(error, json.JSONDecodeError):
        return what
    place = error.pos
    rest = line[place:].strip()
    if what == "Extra data" and rest.startswith(","):
        what = "a comma behind the record"
    elif what == "Extra data" and rest.startswith("{"):
        what = "a second record in the line"
    elif rest.startswith("'"):
        what = "a single quote in place of a double one"
    return f"{what} at character {place + 1}"


class _JsonText:
    """JSON text that is decoded value by value; only the piece at hand is in memory.

    Attributes:
        name: Of the file.
        line: Where the text stands.
    """

    def __init__(self, name: str, pieces: Iterator[str]) -> None:
        self.name = name
        self.line = 1
        self._pieces = pieces
        self._piece = ""
        self._position = 0

    def peek(self) -> str:
        """Goes to the next character that is no space and returns it; "" at the end."""
        while True:
            match = _SPACE.match(self._piece, self._position)
            assert match is not None  # the pattern matches no space at all, too
            self._go_to(match.end())
            if self._position < len(self._piece) or not self._read_on():
                return self._piece[self._position : self._position + 1]

    def take(self, marks: str) -> str:
        """Goes behind the next character and returns it if it is one of `marks`; else ""."""
        mark = self.peek()
        if not mark or mark not in marks:
            return ""
        self._position += 1
        return mark

    def value(self) -> Any:
        """Decodes the next value; a `BadRecord` where an object in it holds a key twice.

        Raises:
            DataError: It is broken: where the next one starts can then only be guessed.
        """
        while True:
            try:
                value, end = self._decode()
            except RecursionError as error:
                raise self.broken(problem_of(error)) from error
            except ValueError as error:
                place = getattr(error, "pos", self._position) - self._position
                if self._read_on():  # it may only be cut
                    continue
                problem = problem_of(error)
                if len(self._piece) > MAX_RECORD:
                    problem += f", or a value of more than {MAX_RECORD:,} characters"
                self._go_to(self._position + place)
                raise self.broken(problem) from error
            size = end - self._position
            # A number may go on in the next piece; all else has an end of its own.
            may_go_on = isinstance(value, (int, float)) and _CUT_NUMBER.match(self._piece, end)
            if may_go_on and self._read_on():
                continue
            self._go_to(self._position + size)
            return value

    def _decode(self) -> tuple[Any, int]:
        try:
            return DECODER.raw_decode(self._piece, self._position)
        except RepeatedKey as error:
            return BadRecord(str(error)), _ANY_KEYS.raw_decode(self._piece, self._position)[1]

    def broken(self, problem: str) -> DataError:
        """The complaint about what stands here."""
        return DataError(
            f"{self.name}:{self.line}: broken JSON ({problem}); mend it, it cannot be skipped"
        )

    def is_open_line(self) -> bool:
        """Whether the line that begins here ends within a value that goes on in the next one."""
        while self._piece.find("\n", self._position) < 0 and self._read_on():
            pass
        line, end, _ = self._piece[self._position :].partition("\n")
        try:
            _ANY_KEYS.raw_decode(line)
        except (ValueError, RecursionError):
            return bool(end) and line.rstrip().endswith(("{", "[", ","))
        return False

    def remainder(self) -> Iterator[str]:
        """Yields the text from here on."""
        yield self._piece[self._position :]
        yield from self._pieces

    def _go_to(self, position: int) -> None:
        self.line += self._piece.count("\n", self._position, position)
        self._position = position

    def _read_on(self) -> bool:
        """Doubles what lies ahead, so that a long value is not decoded too often."""
        ahead = len(self._piece) - self._position
        if ahead > MAX_RECORD:
            return False
        pieces, size = [self._piece[self._position :]], ahead
        while size <= 2 * ahead and (piece := next(self._pieces, "")):
            pieces.append(piece)
            size += len(piece)
        self._piece, self._position = "".join(pieces), 0
        return size > ahead


def _read_array(text: _JsonText) -> Rows:
    yield from _elements(text)
    if text.peek():
        raise text.broken("more text after the end of the array")


def _elements(text: _JsonText) -> Rows:
    """Decodes element by element, because only so each record's line is known."""
    text.take("[")
    if text.take("]"):
        return
    while True:
        text.peek()
        line = text.line
        yield line, text.value()
        mark = text.take(",]")
        if mark == "]":
            return
        if not mark:
            raise text.broken("',' or ']' expected after a record")


def _read_holder(text: _JsonText, notices: list[str]) -> Rows:
    """Reads an object over several lines, one of whose keys holds the records."""
    begin, keys, holder = text.line, list[str](), None
    text.take("{")
    while not text.take("}"):
        if keys and not text.take(","):
            raise text.broken("',' or '}' expected after a value")
        if text.peek() != '"':
            raise text.broken("a key in double quotes expected")
        key = text.value()
        if key in keys:
            raise text.broken(f"key {key!r} occurs twice")
        keys.append(key)
        if not text.take(":"):
            raise text.broken("':' expected after a key")
        if text.peek() != "[":
            text.value()
            continue
        for number, (line, value) in enumerate(_elements(text)):
            if number == 0 and _holds_records(key, [value]):
                if holder is not None:
                    raise _two_lists(f"{text.name}:{line}", holder, key)
                holder = key
            if key == holder:
                yield line, value
    if text.peek():
        raise DataError(
            f"{text.name}:{text.line}: more text after a JSON object over several lines; {_AS_LIST}"
        )
    if holder is None:
        names = ", ".join(map(repr, keys)) or "no keys"
        raise DataError(
            f"{text.name}:{begin}: one JSON object with {names} is not a list of records; "
            f"{_AS_LIST}"
        )
    notices.extend(_left_out(text.name, holder, keys))


def _holds_records(key: str, value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value) and isinstance(value[0], (dict, BadRecord))
    return is_list and key not in _OF_A_RECORD


def _count_texts(value: dict[str, Any]) -> int:
    return sum(isinstance(item, str) for item in value.values())


def _two_lists(where: str, first: str, second: str) -> DataError:
    return DataError(
        f"{where}: {first!r} and {second!r} both hold a list of records; "
        f"write the one that you want into a file of its own"
    )


def _left_out(name: str, holder: str, keys: list[str]) -> Iterator[str]:
    """Tells of the keys beside the records."""
    if others := [key for key in keys if key != holder]:
        yield f"{name}: the records in {holder!r} are read; left out: {', '.join(others)}"
