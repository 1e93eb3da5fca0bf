"""Sampling of the next token from logits, with parameters of its own for every row.

Parameters are data on the device, so that a decode step is the same whatever is sampled.

Shapes: `B` slots, `N` rows of logits, `V` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptune.data.seeds import derive_seed
from ptune.generation.drawing import Draw, Way, way_to_draw
from ptune.generation.penalties import PenalizedRows, Penalties

# The original samples from 50 tokens, by a default of the library of its day.
TOP_K = 50
MOST_LOGPROBS = 20
# Of the vocabulary: on the CPU torch vectorizes a maximum, but not the search for its place.
_BLOCK, _SMALLEST_BLOCK = 512, 32


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters.

    Attributes:
        max_new_tokens: most tokens of an answer.
        do_sample: draw from the distribution; else greedy.
        top_p: probability of the nucleus to draw from.
        temperature: flattens or sharpens the distribution.
        top_k: draw from so many of the likeliest tokens; 0 from all.
        seed: of the draws, which follow from it alone, whatever else is in the batch.
        repetition_penalty: divides the scores of tokens that the prompt or the answer holds.
        presence_penalty: taken from the scores of tokens that the answer holds.
        frequency_penalty: the same, for each time that it holds them.
        logprobs: report the log-probability of each token, and of so many of the likeliest.
    """

    max_new_tokens: int = 512
    do_sample: bool = False
    top_p: float = 0.7
    temperature: float = 0.95
    top_k: int = TOP_K
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None

    @property
    def has_penalties(self) -> bool:
        """Whether what was said changes the scores."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1, 0, 0)

    def arguments(self) -> dict[str, Any]:
        """The parameters as arguments of the library's `generate`."""
        chosen: dict[str, Any] = {"max_new_tokens": self.max_new_tokens}
        chosen["do_sample"] = self.do_sample
        if self.do_sample:
            chosen |= {"top_p": self.top_p, "temperature": self.temperature, "top_k": self.top_k}
        return chosen


class Logprobs(NamedTuple):
    """Log-probabilities of some rows, before penalties and temperature.

    Attributes:
        rows: which of the `N`.
        chosen: `[rows]`, of the chosen token.
        likeliest: `[rows, MOST_LOGPROBS]`, the best ids.
        values: `[rows, MOST_LOGPROBS]`, theirs.
    """

    rows: list[int]
    chosen: Tensor
    likeliest: Tensor
    values: Tensor

    def by_row(self) -> dict[int, tuple[float, tuple[tuple[int, float], ...]]]:
        """For each row the chosen token's, and those of the likeliest by id."""
        ids, values = self.likeliest.tolist(), self.values.tolist()
        pairs = [tuple(zip(*row, strict=True)) for row in zip(ids, values, strict=True)]
        return dict(zip(self.rows, zip(self.chosen.tolist(), pairs, strict=True), strict=True))


class Choice(NamedTuple):
    """A token for each row, and what tells whether there was a choice.

    Attributes:
        ids: `[N]`, always of the vocabulary.
        scores: `[N]`, the highest logits; not finite where some are NaN or all are -inf.
        logprobs: of the rows that asked for them.
    """

    ids: Tensor
    scores: Tensor
    logprobs: Logprobs | None = None


class Sampler:
    """Chooses tokens for the requests in slots.

    Args:
        slots: `B`.
        vocab_size: `V`.
        device: of the logits.
    """

    def __init__(self, slots: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._samplings: list[Sampling | None] = [None] * slots
        self._drawn = torch.zeros(slots, dtype=torch.long, device=device)  # tokens so far
        self._penalties: Penalties | None = None  # until the first request that has some
        self._plans: dict[tuple[int, ...], _Plan] = {}

    def begin(
        self, slots: Sequence[int], requests: Sequence[tuple[Sequence[int], Sampling]]
    ) -> None:
        """Give slots to requests: a prompt's ids, and how to sample its answer."""
        self._plans.clear()
        for slot, (ids, sampling) in zip(slots, requests, strict=True):
            self._samplings[slot] = sampling
            self._drawn[slot] = 0
            if sampling.has_penalties:
                if self._penalties is None:
                    count = len(self._samplings)
                    self._penalties = Penalties(count, self._vocab_size, self._device)
                self._penalties.begin(slot, ids)

    def release(self, slot: int) -> None:
        """Free a slot."""
        self._plans.clear()
        self._samplings[slot] = None

    def move(self, source: int, target: int) -> None:
        """Go on with the request of a slot in another one."""
        self._drawn[target] = self._drawn[source]
        if self._penalties is not None:
            self._penalties.move(source, target)
        self._samplings[target] = self._samplings[source]
        self.release(source)

    def resize(self, slots: int) -> None:
        """Have so many slots."""
        self._plans.clear()
        kept = min(slots, len(self._samplings))
        self._samplings = self._samplings[:kept] + [None] * (slots - kept)
        self._drawn = torch.cat([self._drawn[:kept], self._drawn.new_zeros(slots - kept)])
        if self._penalties is not None:
            self._penalties.resize(slots)

    def choose(self, logits: Tensor, slots: Sequence[int]) -> Choice:
        """Choose a token for each row, without synchronizing with the device.

        Args:
            logits: `[N, V]`.
            slots: whose request each row is.
        """
        key = tuple(slots)
        if (plan := self._plans.get(key)) is None:
            samplings = [self._samplings[slot] for slot in slots]
            plan = self._plans[key] = _Plan(key, samplings, self._device)
        scores, ids = _highest(logits)
        wanted = logits
        if plan.penalized is not None and self._penalties is not None:
            wanted = self._penalties.apply(logits, plan.penalized)
            ids = wanted.argmax(dim=-1)
        if plan.draws:
            drawn = self._drawn[plan.slots]
            for draw in plan.draws:
                ids[draw.rows] = draw(wanted[draw.rows], drawn[draw.rows])
            self._drawn[plan.slots] = drawn + 1
        if plan.penalized is not None and self._penalties is not None:
            self._penalties.count(plan.penalized, ids)
        return Choice(ids, scores, _logprobs(logits, ids, plan.reported))


class _Plan:
    """What there is to do for rows of certain slots; the same until another request comes.

    Attributes:
        slots: `[N]`.
        draws: one for each way to draw.
        penalized: the rows with penalties.
        reported: the rows whose log-probabilities are asked for.
    """

    def __init__(
        self, slots: Sequence[int], samplings: Sequence[Sampling | None], device: torch.device
    ) -> None:
        self.slots = torch.tensor(slots, device=device)
        rows = [(row, sampling) for row, sampling in enumerate(samplings) if sampling is not None]
        ways: dict[Way, list[tuple[int, Sampling]]] = {}
        for row, sampling in rows:
            if sampling.do_sample:
                ways.setdefault(way_to_draw(sampling.top_k, sampling.top_p), []).append(
                    (row, sampling)
                )
        self.draws = [
            Draw(
                way,
                [row for row, _ in drawing],
                [derive_seed("sampling", s.seed) for _, s in drawing],
                [s.temperature for _, s in drawing],
                [s.top_k for _, s in drawing],
                [s.top_p for _, s in drawing],
                device,
            )
            for way, drawing in ways.items()
        ]
        self.penalized: PenalizedRows | None = None
        if penalized := [(row, s) for row, s in rows if s.has_penalties]:
            self.penalized = PenalizedRows(
                torch.tensor([row for row, _ in penalized], device=device),
                torch.tensor([slots[row] for row, _ in penalized], device=device),
                torch.tensor(
                    [
                        (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
                        for _, s in penalized
                    ],
                    device=device,
                ),
            )
        self.reported = [row for row, sampling in rows if sampling.logprobs is not None]


def _highest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The highest of each row of `[N, V]`, and its first place; NaN is higher than anything."""
    block = math.gcd(logits.shape[1], _BLOCK)
    vectorized = logits.device.type == "cpu" and logits.dtype is torch.float32
    if not vectorized or block < _SMALLEST_BLOCK or len(logits) == 1:
        scores, ids = logits.max(dim=-1)
        return scores, ids
    blocks = logits.view(len(logits), logits.shape[1] // block, block)
    scores, at = blocks.amax(dim=-1).max(dim=-1)
    within = blocks[torch.arange(len(at)), at].argmax(dim=-1)
    return scores, at * block + within


def _logprobs(logits: Tensor, ids: Tensor, rows: list[int]) -> Logprobs | None:
    if not rows:
        return None
    values = logits[rows].float().log_softmax(dim=-1)
    likeliest = values.topk(min(MOST_LOGPROBS, values.shape[1]), dim=-1)
    chosen = values.gather(1, ids[rows][:, None]).squeeze(1)
    return Logprobs(rows, chosen, likeliest.indices, likeliest.values)
