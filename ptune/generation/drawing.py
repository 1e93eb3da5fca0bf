"""Draws from the distribution that temperature, top-k and top-p leave of logits.

A draw is a function of its request's seed and of how many tokens the answer has, so that neither
the rows beside it nor the place in the batch change it.

Shapes: `M` rows, `V` vocabulary, `C` candidates of a row, the likeliest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor

_FEW = 64  # candidates that are found faster than the vocabulary is sorted

# SplitMix64, https://doi.org/10.1145/2714064.2660195, with its constants as signed integers.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_SHIFTS = (30, 27, 31)
_BITS = 24  # of a float32's fraction


class Way(Enum):
    """How the candidates are found; by a request's own parameters, never by the others'."""

    FEW = "among the 64 likeliest"
    SORTED = "among all, sorted"
    ALL = "among all, in the order of their ids"


def way_to_draw(top_k: int, top_p: float) -> Way:
    """The way to draw with these parameters; a `top_k` of 0 is none."""
    if 0 < top_k <= _FEW:
        return Way.FEW
    return Way.ALL if top_k == 0 and top_p >= 1 else Way.SORTED


def uniform(seeds: Tensor, drawn: Tensor) -> Tensor:
    """Random numbers between 0 and 1, excluding both.

    Args:
        seeds: `[M]` int64.
        drawn: `[M]` int64, how many were drawn with each seed before.

    Returns:
        `[M]` float32.
    """
    x = seeds + (drawn + 1) * _GAMMA  # int64 wraps around
    for shift, multiplier in zip(_SHIFTS, (*_MULTIPLIERS, 1), strict=True):
        x = (x ^ _unsigned_shift(x, shift)) * multiplier
    return (_unsigned_shift(x, 64 - _BITS).float() + 0.5) * 2.0**-_BITS


def _unsigned_shift(x: Tensor, shift: int) -> Tensor:
    shifted: Tensor = (x >> shift) & (2 ** (64 - shift) - 1)
    return shifted


class Draw:
    """Draws a token for each of some rows that find their candidates in the same way.

    Args:
        way: to find them.
        rows: `M` of a batch.
        seeds: one for each.
        temperatures: the same.
        top_ks: the same; 0 is none.
        top_ps: the same.
        device: of the logits.

    Attributes:
        rows: `[M]`.
    """

    def __init__(
        self,
        way: Way,
        rows: Sequence[int],
        seeds: Sequence[int],
        temperatures: Sequence[float],
        top_ks: Sequence[int],
        top_ps: Sequence[float],
        device: torch.device,
    ) -> None:
        self._way = way
        self.rows = torch.tensor(rows, device=device)
        self._seeds = torch.tensor(seeds, device=device)
        self._temperatures = torch.tensor(temperatures, device=device)[:, None]
        self._top_ks = torch.tensor(top_ks, device=device)[:, None]
        self._top_ps = torch.tensor(top_ps, device=device)[:, None]

    def __call__(self, logits: Tensor, drawn: Tensor) -> Tensor:
        """Draw.

        Args:
            logits: `[M, V]`.
            drawn: `[M]`, tokens that each answer has.

        Returns:
            Ids, `[M]`; of the vocabulary even where logits are NaN.
        """
        where = uniform(self._seeds, drawn)[:, None]
        scores = logits.float() / self._temperatures
        if self._way is Way.ALL:
            return _place(scores.softmax(dim=-1), where).squeeze(1)
        if self._way is Way.FEW:
            scores, ids = scores.topk(min(_FEW, scores.shape[1]), dim=-1)
        else:
            scores, ids = scores.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(scores.shape[1], device=scores.device)
        left = (rank < self._top_ks) | (self._top_ks == 0)
        probabilities = scores.masked_fill(~left, -torch.inf).softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= self._top_ps, 0.0)
        return ids.gather(1, _place(probabilities, where)).squeeze(1)


def _place(probabilities: Tensor, where: Tensor) -> Tensor:
    """The first candidate up to which the probabilities reach a share of their sum.

    Args:
        probabilities: `[M, C]`, of any sum.
        where: `[M, 1]`, shares.

    Returns:
        `[M, 1]`, a candidate with a probability.
    """
    reached = probabilities.cumsum(dim=-1)
    place = torch.searchsorted(reached, where * reached[:, -1:], right=False)
    return place.clamp(max=probabilities.shape[1] - 1)
