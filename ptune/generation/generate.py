"""Answers for many prompts, ids in, ids out: a slot that gets free goes to the next prompt."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from ptune.errors import ModelError
from ptune.generation.decoding import Decoder
from ptune.generation.sampling import Choice, Sampling

# Putting prompts into slots costs a few steps, so it waits until this part of them is free, and
# until all are when the answers at work end within so many tokens or this part of the longest.
_FREE_PART = 1 / 4
_SOON, _SOON_PART = 16, 1 / 4


def generate_all(
    model: Any,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    sampling: Sampling,
    seed: int = 0,
    done: Collection[int] = (),
    graphs: bool = True,
) -> Iterator[list[tuple[int, list[int]]]]:
    """Answer prompts, the longest first so that memory runs out early if it does.

    With sampling, prompts are answered in batches, each with a seed of its own, so that a batch
    draws the same whether or not others came before it.

    Args:
        model: from `load_model`.
        prompts: ids without padding.
        batch_size: prompts at once.
        sampling: how to choose tokens.
        seed: with sampling.
        done: indices of prompts that need no answer.
        graphs: record a step on a CUDA card and replay it.

    Yields:
        As answers are finished, pairs of a prompt's index and its new ids, without the end token.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    if sampling.do_sample:
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    else:
        batches = [[i for i in order if i not in done]]
    slots: _Slots | None = None
    for number, batch in enumerate(batches):
        if all(i in done for i in batch):
            continue
        if sampling.do_sample:
            set_seed(seed + number * batch_size)
        count = min(batch_size, len(batch))
        if slots is None or slots.count != count:
            slots = _Slots(model, prompts, count, sampling, graphs)
        for answers in slots.run(batch):
            if finished := [(a.index, a.ids) for a in answers if a.finished]:
                yield finished


def generate_one(
    model: Any,
    prompt: Sequence[int],
    sampling: Sampling,
    stopped: Callable[[], bool] = lambda: False,
    graphs: bool = True,
) -> Iterator[int]:
    """Answer one prompt, token by token.

    Args:
        model: from `load_model`.
        prompt: ids.
        sampling: how to choose tokens.
        stopped: asked after each token; True ends the answer.
        graphs: record a step on a CUDA card and replay it.

    Yields:
        The new ids, without the end token.
    """
    given = 0
    for answers in _Slots(model, [prompt], 1, sampling, graphs).run([0]):
        for answer in answers:
            yield from answer.ids[given:]
            given = len(answer.ids)
        if stopped():
            return


@dataclass
class _Answer:
    """An answer at work.

    Attributes:
        index: of its prompt.
        slot: where it is made.
        ids: so far.
        asked: how many were asked of the device, of which the last may be on their way.
        finished: whether nothing more is to come.
    """

    index: int
    slot: int
    ids: list[int] = field(default_factory=list)
    asked: int = 0
    finished: bool = False


class _Slots:
    """Keeps the slots of a `Decoder` busy."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        count: int,
        sampling: Sampling,
        graphs: bool,
    ) -> None:
        longest = max(map(len, prompts)) + sampling.max_new_tokens
        self._decoder = Decoder(model, count, sampling.choose, longest, graphs)
        self._prompts = prompts
        self._stops = frozenset(model.generation_config.eos_token_id)
        self._sampling = sampling
        # While a card computes a token, the one before is looked at.
        self._behind = 1 if model.device.type == "cuda" else 0
        self._at_work: list[_Answer | None] = [None] * count

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._at_work)

    def run(self, indices: Iterable[int]) -> Iterator[list[_Answer]]:
        """Answer the prompts of these indices.

        Yields:
            The answers that got longer or are finished, after every step; perhaps none.
        """
        waiting = deque(indices)
        coming: deque[_Coming] = deque()
        while waiting or coming or any(self._at_work):
            wanting = [a for a in self._at_work if a and a.asked < self._sampling.max_new_tokens]
            if waiting and self._time_to_fill(wanting):
                coming.append(self._fill(waiting))
            elif wanting:
                if not waiting:
                    self._shrink()
                coming.append(self._step(wanting))
            else:  # everything has been asked for
                yield self._receive(coming.popleft())
            while len(coming) > self._behind:
                yield self._receive(coming.popleft())

    def _time_to_fill(self, wanting: list[_Answer]) -> bool:
        free = self._at_work.count(None)
        if not wanting:
            return free > 0
        most = self._sampling.max_new_tokens
        longest_wait = max(most - answer.asked for answer in wanting)
        soon = min(_SOON, most * _SOON_PART)
        return free >= self.count * _FREE_PART and longest_wait > soon

    def _fill(self, waiting: deque[int]) -> _Coming:
        free = [slot for slot, answer in enumerate(self._at_work) if answer is None]
        answers = [_Answer(waiting.popleft(), slot) for slot in free[: len(waiting)]]
        for answer in answers:
            self._at_work[answer.slot] = answer
            answer.asked = 1
        first = self._decoder.fill(
            [answer.slot for answer in answers], [self._prompts[a.index] for a in answers]
        )
        return _Coming(first, list(enumerate(answers)))

    def _step(self, wanting: list[_Answer]) -> _Coming:
        for answer in wanting:
            answer.asked += 1
        return _Coming(self._decoder.step(), [(answer.slot, answer) for answer in wanting])

    def _receive(self, coming: _Coming) -> list[_Answer]:
        ids, scores = coming.arrived()
        answers = []
        for row, answer in coming.answers:
            if answer.finished:  # by the token before, when this one was on its way
                continue
            if not math.isfinite(scores[row]):
                raise _not_finite(self._decoder.model.dtype, len(answer.ids))
            if ids[row] in self._stops:
                answer.finished = True
            else:
                answer.ids.append(ids[row])
                answer.finished = len(answer.ids) == self._sampling.max_new_tokens
            if answer.finished:
                self._at_work[answer.slot] = None
                self._decoder.release(answer.slot)
            answers.append(answer)
        return answers

    def _shrink(self) -> None:
        """Drop free slots, for which no prompts are left, when they are the half of all."""
        busy = [answer for answer in self._at_work if answer is not None]
        # With sampling, a row less would change what the others draw.
        if self._sampling.do_sample or not self._decoder.shrinks or 2 * len(busy) > self.count:
            return
        self._decoder.keep([answer.slot for answer in busy])
        for slot, answer in enumerate(busy):
            answer.slot = slot
        self._at_work = list(busy)


def _not_finite(dtype: torch.dtype, said: int) -> ModelError:
    """Say that an answer cannot go on after `said` tokens."""
    name = str(dtype).removeprefix("torch.")
    wider = {torch.float16: "bfloat16 or float32", torch.bfloat16: "float32"}.get(dtype)
    advice = f"--dtype {wider}, or " if wider else ""
    return ModelError(
        f"the logits after {said} tokens of an answer are not finite (NaN or infinite) in {name}; "
        f"pass {advice}another prefix with --checkpoint, or another --model"
    )


class _Coming:
    """Tokens on their way from the device.

    Args:
        chosen: `N` of them.
        answers: their places among these, and the answer each belongs to.
    """

    def __init__(self, chosen: Choice, answers: list[tuple[int, _Answer]]) -> None:
        self.answers = answers
        self._chosen = chosen
        self._event: torch.cuda.Event | None = None
        if chosen.ids.device.type == "cuda":
            self._chosen = Choice(*(_to_host(tensor) for tensor in chosen))
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(chosen.ids.device))

    def arrived(self) -> tuple[list[int], list[float]]:
        """Wait for the ids and their scores."""
        if self._event is not None:
            self._event.synchronize()
        return self._chosen.ids.tolist(), self._chosen.scores.tolist()


def _to_host(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
