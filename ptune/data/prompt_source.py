"""The prompt side of an example: its ids, and what may be cut of them."""

from __future__ import annotations

from dataclasses import dataclass

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Source:
    """The prompt side; the last `tail` ids ask for the answer and are never cut by `turns`."""

    ids: list[int]
    labels: list[int]
    owners: list[int | None]
    tail: int

    def cut(self, length: int, keep_tail: bool) -> Source:
        """Leave at most `length` ids, of the beginning and, if asked for, the tail."""
        if len(self.ids) <= length:
            return self
        tail = min(self.tail, length) if keep_tail else 0
        keep = [*range(length - tail), *range(len(self.ids) - tail, len(self.ids))]
        owners = [self.owners[i] for i in keep] if self.owners else []
        return Source([self.ids[i] for i in keep], [self.labels[i] for i in keep], owners, tail)
