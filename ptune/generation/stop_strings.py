"""Texts that end an answer, found in pieces of it."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes an answer on up to the first stop string, which is left out.

    The first is the one that is complete first, so that pieces of any size give the same.  What
    may be the beginning of one is held back until more is known.

    Args:
        strings: none of them empty.

    Attributes:
        found: whether the answer has ended.
    """

    def __init__(self, strings: Sequence[str] = ()) -> None:
        self._strings = strings
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Add a piece; return what is settled by it, perhaps nothing."""
        if self.found or not self._strings:
            return "" if self.found else piece
        text = self._held + piece
        places = [(text.find(string), len(string)) for string in self._strings]
        ends = [(place + length, place) for place, length in places if place >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        held = max(_beginning(text, string) for string in self._strings)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Return the rest of an answer that ended otherwise."""
        rest, self._held = self._held, ""
        return rest


def _beginning(text: str, string: str) -> int:
    """How many characters at the end of a text are the beginning of a string."""
    most = min(len(text), len(string) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(string[:n])), 0)
