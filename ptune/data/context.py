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
    fitting, longer = 0, min(_TRIED_FIRST, len(context))
    while longer > fitting and fits(context[:longer]):
        fitting, longer = longer, min(2 * longer, len(context))
    while longer - fitting > 1:
        middle = (fitting + longer) // 2
        if fits(context[:middle]):
            fitting = middle
        else:
            longer = middle
    return context[:fitting]
