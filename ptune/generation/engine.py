"""The engine: requests wait, join the batch between two steps, and leave when they are finished.

Synchronous: whoever calls `step` again and again runs it, `generate.py` or the thread of a server.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ptune.device.memory import rounded_down, rounded_length
from ptune.errors import ModelError, PTuneError, RequestTooLong
from ptune.generation.decoding import Decoder, Prefill, Prompt
from ptune.generation.sampling import Choice, Logprobs

Finish = Literal["stop", "length"]


class Token(NamedTuple):
    """A token of an answer.

    Attributes:
        id: of the vocabulary.
        logprob: its log-probability, if the request asked for it.
        alternatives: ids of the likeliest tokens with theirs, as many as it asked for.
    """

    id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Request(Prompt):
    """A prompt to be answered; equal to itself alone.

    Attributes:
        count: tokens of the answer so far.
        scheduled: how many the device was told to compute; the last may be in flight.
        slot: that it occupies, while it runs.
        finished: it gets no more tokens.
    """

    count: int = field(default=0, init=False)
    scheduled: int = field(default=0, init=False)
    slot: int | None = field(default=None, init=False)
    finished: bool = field(default=False, init=False)


@dataclass
class Progress:
    """What a step gave a request.

    Attributes:
        request: the request.
        tokens: new ones, without the end token.
        finish: why it is finished: by an end token, or by `max_new_tokens`.
        error: why it cannot go on.
    """

    request: Request
    tokens: list[Token] = field(default_factory=list)
    finish: Finish | None = None
    error: PTuneError | None = None


class Admission(NamedTuple):
    """When waiting requests are given slots.

    Attributes:
        should_admit: of the requests at work and the free slots.
        prefill_tokens: prompt tokens to be computed between two decode steps while requests are at
            work; None computes all.
    """

    should_admit: Callable[[Sequence[Request], int, int], bool]
    prefill_tokens: int | None


def _whenever_free(running: Sequence[Request], free: int, slots: int) -> bool:
    return free > 0


# A prefill costs as much as a few decode steps, so admission waits until this share of the slots is
# free, and until all are if the running requests end within so many tokens, or within this share of
# `max_new_tokens`.
_FREE_SHARE = 1 / 4
_SOON, _SOON_SHARE = 16, 1 / 4


def _many_at_once(running: Sequence[Request], free: int, slots: int) -> bool:
    if not running:
        return free > 0
    most = max(request.sampling.max_new_tokens for request in running)
    longest_wait = max(r.sampling.max_new_tokens - r.scheduled for r in running)
    return free >= slots * _FREE_SHARE and longest_wait > min(_SOON, most * _SOON_SHARE)


# For people who wait for answers, and for work where the sum of all seconds counts.
INTERACTIVE = Admission(_whenever_free, prefill_tokens=512)
THROUGHPUT = Admission(_many_at_once, prefill_tokens=None)


class Engine:
    """Answers requests, many at once.

    Args:
        model: from `load_model`; its own prefix is not looked at.
        max_slots: requests at work at once.
        admission: when others join.
        cache_tokens: positions of the KV cache that there is memory for, over all slots; by default
            as many as requests take.
        graphs: capture decode steps as CUDA graphs.
    """

    def __init__(
        self,
        model: Any,
        max_slots: int,
        admission: Admission = INTERACTIVE,
        cache_tokens: int | None = None,
        graphs: bool = True,
    ) -> None:
        self._model = model
        self._max_slots = max_slots
        self._admission = admission
        self._cache_tokens = cache_tokens
        self._stops = frozenset(model.generation_config.eos_token_id)
        self._graphs = graphs
        self._decoder = Decoder(model, max_slots, 0, graphs)
        self._slots: list[Request | None] = [None] * max_slots
        self._waiting: deque[Request] = deque()
        self._prefill: tuple[Prefill, list[Request]] | None = None
        self._in_flight: deque[_Output] = deque()
        # Ids are read this many steps late, so that a card always has a step to compute.
        self._lag = 1 if model.device.type == "cuda" else 0

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests with a slot."""
        return sum(request is not None for request in self._slots)

    @property
    def max_slots(self) -> int:
        """The most requests at work at once."""
        return self._max_slots

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._waiting or self._in_flight or self.running)

    def check(self, request: Request) -> None:
        """See that a request fits, if it has all memory for itself.

        Raises:
            RequestTooLong: it never does.
        """
        if self._cache_tokens is None or rounded_length(request.longest) <= self._cache_tokens:
            return
        most = rounded_down(self._cache_tokens)
        room = most - request.prefix_length - len(request.ids)
        shorter = f"ask for {room} or fewer" if room > 0 else "shorten the question"
        raise RequestTooLong(
            f"{request.prefix_length} tokens of the prefix, {len(request.ids)} of the prompt and "
            f"{request.sampling.max_new_tokens} of the answer do not fit the KV cache of {most} "
            f"tokens; {shorter}"
        )

    def add(self, request: Request) -> None:
        """Let a request wait for a slot.

        Raises:
            RequestTooLong: from `check`.
        """
        self.check(request)
        self._waiting.append(request)

    def cancel(self, request: Request) -> None:
        """Drop a request; nothing is said of it any more."""
        if request.finished:
            return
        request.finished = True
        if request.slot is None:
            self._waiting.remove(request)
        elif self._prefill is None or request not in self._prefill[1]:
            self._release(request)

    def abort(self) -> list[Request]:
        """Drop the requests at work and the KV cache, after running out of memory."""
        dropped = [request for request in self._slots if request is not None]
        alive = [request for request in dropped if not request.finished]
        for request in dropped:
            request.finished, request.slot = True, None
        self._prefill = None
        self._in_flight.clear()
        self._decoder = Decoder(self._model, self._max_slots, 0, self._graphs)
        self._slots = [None] * self._max_slots
        return alive

    def step(self) -> list[Progress]:
        """Compute a part of the waiting prompts, and a token for each request at work.

        Returns:
            What that gave, or what an earlier step did; perhaps nothing.
        """
        running = self._running()
        if self._prefill is None and self._waiting:
            self._admit(running)
        launched = self._advance_prefill(bool(running))
        progress = self._receive_all_but(self._lag)
        if running := self._running():
            self._compact()
            self._in_flight.append(self._step(running))
            launched = True
        return progress + self._receive_all_but(self._lag if launched else 0)

    def _receive_all_but(self, most: int) -> list[Progress]:
        """Take tokens until only so many steps are in flight."""
        progress: list[Progress] = []
        while len(self._in_flight) > most:
            progress += self._receive(self._in_flight.popleft())
        return progress

    def _running(self) -> list[Request]:
        """Requests that a decode step gives another token."""
        prefilling = self._prefill[1] if self._prefill else []
        return [
            request
            for request in self._slots
            if request is not None
            and not request.finished
            and request not in prefilling
            and request.scheduled < request.sampling.max_new_tokens
        ]

    def _admit(self, running: list[Request]) -> None:
        """Give slots to waiting requests, as many as there is memory for."""
        at_work = [request for request in self._slots if request is not None]
        free = self._max_slots - len(at_work)
        if not self._admission.should_admit(running, free, self._max_slots):
            return
        longest = max((request.longest for request in at_work), default=0)
        budget = self._admission.prefill_tokens
        count = widest = 0
        for request in self._waiting:
            widest = max(widest, len(request.ids))
            if count and budget is not None and widest * (count + 1) > budget:
                break
            if self._slots_for(max(longest, request.longest)) <= len(at_work) + count:
                break
            longest, count = max(longest, request.longest), count + 1
        if not count:
            return
        self._make_room(longest, len(at_work) + count)
        slots = [slot for slot, request in enumerate(self._slots) if request is None][:count]
        admitted = [self._waiting.popleft() for _ in slots]
        for slot, request in zip(slots, admitted, strict=True):
            self._slots[slot] = request
            request.slot, request.scheduled = slot, 1
        self._prefill = self._decoder.begin(slots, admitted), admitted

    def _slots_for(self, longest: int) -> int:
        """The most slots that there is memory for if a request takes so many positions."""
        if self._cache_tokens is None:
            return self._max_slots
        return min(self._max_slots, self._cache_tokens // rounded_length(longest))

    def _make_room(self, longest: int, count: int) -> None:
        """Have slots for so many requests, the longest of which takes so many positions."""
        self._decoder.longest = longest
        most = self._slots_for(longest)
        if count <= len(self._slots) <= most:
            return
        self._move_below(most)
        self._slots = self._slots[:most] + [None] * (most - len(self._slots))
        self._decoder.resize(most)

    def _move_below(self, rows: int) -> None:
        """Move requests into the first slots."""
        free = [slot for slot, request in enumerate(self._slots[:rows]) if request is None]
        for source, request in enumerate(self._slots[rows:], start=rows):
            if request is not None:
                target = free.pop(0)
                self._decoder.move(source, target)
                self._slots[source], self._slots[target] = None, request
                request.slot = target

    def _rows(self, count: int) -> int:
        """Rows of a step for so many slots; of captured steps there are few sizes."""
        if self._decoder.captures:
            count = 1 << (count - 1).bit_length()
        return min(count, len(self._slots))

    def _compact(self) -> None:
        """Move requests together where a quarter of the rows is computed for nothing."""
        if self._waiting or self._prefill is not None:
            return
        used, count = self._used_slots(), self.running
        if self._rows(count) <= self._rows(used) * 3 / 4:
            self._move_below(self._rows(count))

    def _used_slots(self) -> int:
        """Slots up to the last that is not free."""
        return max((i + 1 for i, request in enumerate(self._slots) if request is not None))

    def _step(self, running: list[Request]) -> _Output:
        for request in running:
            request.scheduled += 1
        choice = self._decoder.step(self._rows(self._used_slots()))
        return _Output(choice, [(_slot(request), request) for request in running])

    def _advance_prefill(self, others: bool) -> bool:
        """Compute a part of the prompts, or all; returns whether there was one.

        Args:
            others: whether requests wait for their next token meanwhile.
        """
        if self._prefill is None:
            return False
        prefill, requests = self._prefill
        layers, budget = self._decoder.num_layers, self._admission.prefill_tokens
        if others and budget is not None:
            layers = max(1, layers * budget // prefill.tokens)
        choice = self._decoder.advance(prefill, layers)
        if choice is not None:
            self._prefill = None
            self._in_flight.append(_Output(choice, list(enumerate(requests))))
            for request in requests:
                if request.finished:  # cancelled on the way
                    self._release(request)
        return True

    def _receive(self, output: _Output) -> list[Progress]:
        progress = []
        for request, token, score in output.tokens():
            if request.finished:  # by the token before, when this one was in flight; or cancelled
                continue
            if not math.isfinite(score):
                error = _not_finite(self._model.dtype, request.count)
                progress.append(Progress(request, error=error))
                self._finish(request, wipe=True)
            elif token.id in self._stops:
                progress.append(Progress(request, finish="stop"))
                self._finish(request)
            else:
                request.count += 1
                ended = request.count == request.sampling.max_new_tokens
                progress.append(Progress(request, [token], "length" if ended else None))
                if ended:
                    self._finish(request)
        return progress

    def _finish(self, request: Request, wipe: bool = False) -> None:
        request.finished = True
        self._release(request, wipe)

    def _release(self, request: Request, wipe: bool = False) -> None:
        slot = _slot(request)
        self._slots[slot] = request.slot = None
        self._decoder.release(slot, wipe)


def _slot(request: Request) -> int:
    assert request.slot is not None
    return request.slot


def _not_finite(dtype: torch.dtype, said: int) -> ModelError:
    """Say that an answer cannot continue after `said` tokens."""
    name = str(dtype).removeprefix("torch.")
    wider = {torch.float16: "bfloat16 or float32", torch.bfloat16: "float32"}.get(dtype)
    advice = f"--dtype {wider}, or " if wider else ""
    return ModelError(
        f"the logits after {said} tokens of an answer are not finite (NaN or infinite) in {name}; "
        f"pass {advice}another --checkpoint or --model"
    )


class _Output:
    """Tokens of a prefill or decode step, copied from the device asynchronously.

    Args:
        chosen: `N` of them.
        requests: their places among these, and the request each belongs to.
    """

    def __init__(self, chosen: Choice, requests: list[tuple[int, Request]]) -> None:
        self._requests = requests
        self._chosen = chosen
        self._copied: torch.cuda.Event | None = None
        if chosen.ids.device.type == "cuda":
            logprobs = chosen.logprobs
            if logprobs is not None:
                logprobs = Logprobs(logprobs.rows, *(_to_host(part) for part in logprobs[1:]))
            self._chosen = Choice(_to_host(chosen.ids), _to_host(chosen.scores), logprobs)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(chosen.ids.device))

    def tokens(self) -> list[tuple[Request, Token, float]]:
        """Wait for the copy and return each request's token and its score."""
        if self._copied is not None:
            self._copied.synchronize()
        ids, scores = self._chosen.ids.tolist(), self._chosen.scores.tolist()
        reported = self._chosen.logprobs.by_row() if self._chosen.logprobs is not None else {}
        found = []
        for row, request in self._requests:
            token = Token(ids[row])
            if row in reported:
                logprob, alternatives = reported[row]
                token = Token(ids[row], logprob, alternatives[: request.sampling.logprobs])
            found.append((request, token, scores[row]))
        return found


def _to_host(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
