"""A text that a question is about: how the two become one prompt, and how much of it fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_HEAD, _ASKS = "已知信息：", "根据已知信息回答问题："
_TRIED_FIRST = 64  # characters


@dataclass(frozen=True)
class ContextCut:
    """What of a context does not fit.

    Attributes:
        tokens: of the whole context.
        kept_tokens: of its beginning, which fits.
        characters: of the whole context.
        kept_characters: of its beginning.
    """

    tokens: int
    kept_tokens: int
    characters: int
    kept_characters: int

    def __str__(self) -> str:
        """For people, as the end of a sentence."""
        return (
            f"of its {self.tokens:,} tokens the first {self.kept_tokens:,} fit, "
            f"{self.kept_characters:,} of {self.characters:,} characters"
        )


def with_context(context: str, question: str) -> str:
    """Put a context in front of the question about it; a blank one gives the question alone."""
    context = context.strip()
    return f"{_HEAD}{context}\n{_ASKS}{question}" if context else question


def holds_context(question: str) -> bool:
    """Whether a question has a context in it already, as `with_context` writes it."""
    return question.lstrip().startswith(_HEAD) and f"\n{_ASKS}" in question


def longest_beginning(context: str, fits: Callable[[str], bool]) -> str:
    """The longest beginning of a context that fits; nothing if none does.

    Args:
        context: of any length.
        fits: whether a beginning does.  It is asked about few that are much too long.
    """
    return context[: most_that_fit(len(context), lambda n: fits(context[:n]), _TRIED_FIRST)]


def most_that_fit(count: int, fits: Callable[[int], bool], tried_first: int = 1) -> int:
    """The largest number that fits; 0 if none does.

    Args:
        count: the largest that is asked about.
        fits: whether a number does, and with it all below.  It is asked about few that are much
            too large, since those take longest.
        tried_first: which is doubled as long as it fits.
    """
    fitting, more = 0, min(tried_first, count)
    while more > fitting and fits(more):
        fitting, more = more, min(2 * more, count)
    while more - fitting > 1:
        middle = (fitting + more) // 2
        if fits(middle):
            fitting = middle
        else:
            more = middle
    return fitting
