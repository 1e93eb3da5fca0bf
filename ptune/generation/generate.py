"""Continuous batching: prompts are admitted into slots as others finish; ids in, ids out."""

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

# A prefill costs as much as a few decode steps, so admission waits until this share of the slots is
# free, and until all are if the running requests end within so many tokens, or within this share of
# `max_new_tokens`.
_FREE_SHARE = 1 / 4
_SOON, _SOON_SHARE = 16, 1 / 4


def generate_all(
    model: Any,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    sampling: Sampling,
    seed: int = 0,
    done: Collection[int] = (),
    graphs: bool = True,
) -> Iterator[list[tuple[int, list[int]]]]:
    """Generate for all prompts, the longest first so that memory runs out early if it does.

    With sampling, prompts are processed in fixed batches, each with a seed of its own, so that a
    batch draws the same whether or not others came before it.

    Args:
        model: from `load_model`.
        prompts: ids without padding.
        batch_size: the number of slots.
        sampling: its parameters.
        seed: with sampling.
        done: indices of prompts to leave out.
        graphs: capture decode steps as CUDA graphs.

    Yields:
        As requests finish, pairs of a prompt's index and its new ids, without the end token.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    if sampling.do_sample:
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    else:
        batches = [[i for i in order if i not in done]]
    scheduler: _Scheduler | None = None
    for number, batch in enumerate(batches):
        if all(i in done for i in batch):
            continue
        if sampling.do_sample:
            set_seed((seed + number * batch_size) % 2**32)  # more, numpy does not take
        count = min(batch_size, len(batch))
        if scheduler is None or scheduler.slots != count:
            scheduler = _Scheduler(model, prompts, count, sampling, graphs)
        for requests in scheduler.run(batch):
            if finished := [(r.index, r.ids) for r in requests if r.finished]:
                yield finished


def generate_one(
    model: Any,
    prompt: Sequence[int],
    sampling: Sampling,
    stopped: Callable[[], bool] = lambda: False,
    graphs: bool = True,
) -> Iterator[int]:
    """Generate for one prompt, token by token.

    Args:
        model: from `load_model`.
        prompt: ids.
        sampling: its parameters.
        stopped: called after each token; True ends the request.
        graphs: capture decode steps as CUDA graphs.

    Yields:
        The new ids, without the end token.
    """
    given = 0
    for requests in _Scheduler(model, [prompt], 1, sampling, graphs).run([0]):
        for request in requests:
            yield from request.ids[given:]
            given = len(request.ids)
        if stopped():
            return


@dataclass
class _Request:
    """A running request.

    Attributes:
        index: of its prompt.
        slot: that it occupies.
        ids: new ids so far.
        scheduled: how many new ids the device was told to compute; the last may be in flight.
        finished: by the end token or by `max_new_tokens`.
    """

    index: int
    slot: int
    ids: list[int] = field(default_factory=list)
    scheduled: int = 0
    finished: bool = False


class _Scheduler:
    """Admits prompts into the free slots of a `Decoder` and runs its decode steps."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        slots: int,
        sampling: Sampling,
        graphs: bool,
    ) -> None:
        longest = max(map(len, prompts)) + sampling.max_new_tokens
        self._decoder = Decoder(model, slots, sampling.choose, longest, graphs)
        self._prompts = prompts
        self._stops = frozenset(model.generation_config.eos_token_id)
        self._sampling = sampling
        # Ids are read this many steps late, so that a card always has a step to compute.
        self._lag = 1 if model.device.type == "cuda" else 0
        self._slots: list[_Request | None] = [None] * slots

    @property
    def slots(self) -> int:
        """The number of slots."""
        return len(self._slots)

    def run(self, indices: Iterable[int]) -> Iterator[list[_Request]]:
        """Generate for the prompts of these indices.

        Yields:
            After every step, the requests that got longer or are finished; perhaps none.
        """
        waiting = deque(indices)
        in_flight: deque[_Output] = deque()
        while waiting or in_flight or any(self._slots):
            running = [r for r in self._slots if r and r.scheduled < self._sampling.max_new_tokens]
            if waiting and self._should_admit(running):
                in_flight.append(self._admit(waiting))
            elif running:
                if not waiting:
                    self._shrink()
                in_flight.append(self._step(running))
            else:  # all tokens are scheduled
                yield self._receive(in_flight.popleft())
            while len(in_flight) > self._lag:
                yield self._receive(in_flight.popleft())

    def _should_admit(self, running: list[_Request]) -> bool:
        free = self._slots.count(None)
        if not running:
            return free > 0
        most = self._sampling.max_new_tokens
        longest_wait = max(most - request.scheduled for request in running)
        soon = min(_SOON, most * _SOON_SHARE)
        return free >= self.slots * _FREE_SHARE and longest_wait > soon

    def _admit(self, waiting: deque[int]) -> _Output:
        """Prefill waiting prompts into all free slots."""
        free = [slot for slot, request in enumerate(self._slots) if request is None]
        admitted = [_Request(waiting.popleft(), slot) for slot in free[: len(waiting)]]
        for request in admitted:
            self._slots[request.slot] = request
            request.scheduled = 1
        first = self._decoder.prefill(
            [request.slot for request in admitted], [self._prompts[r.index] for r in admitted]
        )
        return _Output(first, list(enumerate(admitted)))

    def _step(self, running: list[_Request]) -> _Output:
        for request in running:
            request.scheduled += 1
        return _Output(self._decoder.step(), [(request.slot, request) for request in running])

    def _receive(self, output: _Output) -> list[_Request]:
        ids, scores = output.tokens()
        changed = []
        for row, request in output.requests:
            if request.finished:  # by the token before, when this one was in flight
                continue
            if not math.isfinite(scores[row]):
                raise _not_finite(self._decoder.model.dtype, len(request.ids))
            if ids[row] in self._stops:
                request.finished = True
            else:
                request.ids.append(ids[row])
                request.finished = len(request.ids) == self._sampling.max_new_tokens
            if request.finished:
                self._slots[request.slot] = None
                self._decoder.release(request.slot)
            changed.append(request)
        return changed

    def _shrink(self) -> None:
        """Drop free slots when no prompts are waiting and at least half of all slots are free."""
        running = [request for request in self._slots if request is not None]
        # With sampling, a row less would change what the others draw.
        if self._sampling.do_sample or not self._decoder.shrinks or 2 * len(running) > self.slots:
            return
        self._decoder.keep([request.slot for request in running])
        for slot, request in enumerate(running):
            request.slot = slot
        self._slots = list(running)


def _not_finite(dtype: torch.dtype, said: int) -> ModelError:
    """Say that an answer cannot continue after `said` tokens."""
    name = str(dtype).removeprefix("torch.")
    wider = {torch.float16: "bfloat16 or float32", torch.bfloat16: "float32"}.get(dtype)
    advice = f"--dtype {wider}, or " if wider else ""
    return ModelError(
        f"the logits after {said} tokens of an answer are not finite (NaN or infinite) in {name}; "
        f"pass {advice}another prefix with --checkpoint, or another --model"
    )


class _Output:
    """Tokens of a prefill or decode step, copied from the device asynchronously.

    Args:
        chosen: `N` of them.
        requests: their places among these, and the request each belongs to.
    """

    def __init__(self, chosen: Choice, requests: list[tuple[int, _Request]]) -> None:
        self.requests = requests
        self._chosen = chosen
        self._copied: torch.cuda.Event | None = None
        if chosen.ids.device.type == "cuda":
            self._chosen = Choice(*(_to_host(tensor) for tensor in chosen))
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(chosen.ids.device))

    def tokens(self) -> tuple[list[int], list[float]]:
        """Wait for the copy and return the ids and their scores."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._chosen.ids.tolist(), self._chosen.scores.tolist()


def _to_host(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
