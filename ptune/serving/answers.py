"""Answers of the engine, awaited by the handlers of a server."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ptune.base.folder import Generation
from ptune.data.prompt import (
    WHOLE,
    Conversation,
    Example,
    Lengths,
    measure_context,
    render,
)
from ptune.errors import DataError, PTuneError
from ptune.generation.engine import Finish, Progress, Request, Token
from ptune.generation.sampling import Sampling
from ptune.generation.stop_strings import StopStrings
from ptune.generation.streaming import TextStream, max_prompt_length
from ptune.serving.log import note_answer
from ptune.serving.metrics import Metrics
from ptune.serving.prefix_store import PrefixStore
from ptune.serving.worker import Delivery, Unavailable, Worker


class TimedOut(PTuneError):
    """A request took longer than may be."""


def _late(timeout: float) -> TimedOut:
    return TimedOut(
        f"the answer was not finished within {timeout:g} seconds; "
        "ask for fewer tokens, or start the server with a larger --request-timeout"
    )


@dataclass
class Piece:
    """A part of an answer.

    Attributes:
        text: that became certain.
        tokens: that came with it.
    """

    text: str
    tokens: list[Token] = field(default_factory=list)


class Answer:
    """An answer on its way; iterate over `pieces` once, and `close` it.

    Args:
        worker: of the engine.
        request: is submitted.
        tokenizer: from `load_tokenizer`.
        stops: texts that end it.
        timeout: seconds that it may take.
        ended: told once, at its end, why.

    Attributes:
        finish: why it has ended.
        said: its text so far.
        completion_tokens: how many it has.
        first_token_seconds: from the beginning to its first token.
    """

    def __init__(
        self,
        worker: Worker,
        request: Request,
        tokenizer: Any,
        stops: Sequence[str],
        timeout: float,
        ended: Callable[[Answer, str], None],
    ) -> None:
        self._worker = worker
        self._ended: Callable[[Answer, str], None] | None = ended
        self._request = request
        self._text = TextStream(tokenizer)
        self._stops = StopStrings(stops)
        self._progress: asyncio.Queue[Progress | None] = asyncio.Queue()  # None: it is closed
        self.began = time.monotonic()
        self.finish: Finish | None = None
        self.said = ""
        self.completion_tokens = 0
        self.first_token_seconds: float | None = None
        worker.submit(request, self._progress.put_nowait)
        # One timer, as a waiting with a timeout of its own for each token costs more than its text.
        late = Progress(request, error=_late(timeout))
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(timeout, self._progress.put_nowait, late)

    @property
    def prompt(self) -> Sequence[int]:
        """Its ids, without the prefix; the same object for answers to the same prompt."""
        return self._request.ids

    async def pieces(self) -> AsyncIterator[Piece]:
        """The answer as it comes; its texts add up to the whole, stripped.

        Raises:
            PTuneError: it cannot go on.
        """
        try:
            async for piece in self._pieces():
                yield piece
        except Exception:
            self._end("error")
            raise

    async def _pieces(self) -> AsyncIterator[Piece]:
        while self.finish is None:
            if (progress := await self._progress.get()) is None:
                return
            if progress.error is not None:
                raise progress.error
            if self.first_token_seconds is None:
                self.first_token_seconds = time.monotonic() - self.began
            self.completion_tokens += len(progress.tokens)
            text = "".join(self._text.push(token.id) for token in progress.tokens)
            if progress.finish is not None:
                text += self._text.finish()
            text = self._stops.push(text)
            if self._stops.found:
                self.finish = "stop"
                self._worker.cancel(self._request)
            elif progress.finish is not None:
                self.finish = progress.finish
                text += self._stops.finish()
            self.said += text
            if self.finish is not None:
                self._end(self.finish)
            if text or progress.tokens:
                yield Piece(text, progress.tokens)

    def close(self) -> None:
        """Free its row, if it has not ended; who still waits for a piece gets none."""
        self._worker.cancel(self._request)
        self._progress.put_nowait(None)
        self._end("client gone")

    def _end(self, why: str) -> None:
        self._timer.cancel()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self, why)


class Answers:
    """Everything between a conversation and its answer.

    Args:
        worker: of the engine; started by `start`.
        tokenizer: from `load_tokenizer`.
        generation: whose prompt to use.
        store: of the prefixes.
        context: tokens that the model can see at once.
        timeout: seconds that an answer may take.
        log_prompts: whether the log says what was asked and answered.
    """

    def __init__(
        self,
        worker: Worker,
        tokenizer: Any,
        generation: Generation,
        store: PrefixStore,
        context: int,
        timeout: float,
        log_prompts: bool = False,
    ) -> None:
        self.metrics = Metrics()
        self._log_prompts = log_prompts
        self.worker = worker
        self.tokenizer = tokenizer
        self.generation = generation
        self.store = store
        self.context = context
        self._timeout = timeout

    async def prompt(self, conversation: Conversation, max_new_tokens: int) -> list[int]:
        """Render a conversation, whole; in a thread, since a long text takes its time.

        Raises:
            DataError: no prompt of this model, or too long, with the numbers.
        """
        return await asyncio.to_thread(self._render, conversation, max_new_tokens)

    def _render(self, conversation: Conversation, max_new_tokens: int) -> list[int]:
        room = self.context - max_new_tokens
        ids = render(self.tokenizer, self.generation, conversation, WHOLE).input_ids
        if len(ids) <= room:
            return ids
        if room > 2 and (
            cut := measure_context(self.tokenizer, self.generation, conversation, room - 1)
        ):
            raise DataError(f"the context is too long: {cut}; send less of it")
        raise DataError(
            f"{len(ids):,} tokens of the prompt and {max_new_tokens:,} of the answer are more than "
            f"the {self.context:,} that the model can see; shorten the conversation, or ask for "
            "fewer tokens"
        )

    async def shortened(self, conversation: Conversation, max_new_tokens: int) -> Example:
        """Render a conversation, and cut what does not fit, which the result says.

        Raises:
            DataError: no prompt of this model.
            ConfigError: the longest answer leaves no room for a question.
        """
        room = max_prompt_length(self.context, max_new_tokens)
        lengths = Lengths(room, max_new_tokens)
        rendered = (self.tokenizer, self.generation, conversation, lengths)
        return await asyncio.to_thread(render, *rendered)

    def begin(
        self,
        ids: list[int],
        name: str,
        sampling: Sampling,
        stops: Sequence[str] = (),
        tell: Callable[..., None] = note_answer,
    ) -> Answer:
        """Ask for an answer.

        Args:
            ids: from `prompt` or `shortened`.
            name: of a prefix.
            sampling: how to choose tokens.
            stops: texts that end the answer.
            tell: the log, what became of it.

        Raises:
            PTuneError: it is not accepted.
        """
        request = Request(ids, sampling, self.store.get(name))

        def ended(answer: Answer, why: str) -> None:
            seconds = time.monotonic() - answer.began
            if answer.first_token_seconds is not None:
                self.metrics.first_token(name, answer.first_token_seconds)
            self.metrics.ended(name, why, len(ids), answer.completion_tokens, seconds)
            details: dict[str, Any] = {"model": name, "end": why, "prompt_tokens": len(ids)}
            details["tokens"] = answer.completion_tokens
            if self._log_prompts:
                details |= {"prompt": [self.tokenizer.decode(ids)], "answer": [answer.said]}
            tell(**details)

        return Answer(self.worker, request, self.tokenizer, stops, self._timeout, ended)

    def check_alive(self) -> None:
        """See that requests are accepted.

        Raises:
            Unavailable: why not.
        """
        if (refusal := self.worker.refusal) is not None:
            raise Unavailable(refusal)


def random_seed() -> int:
    """For a request that gives none."""
    return secrets.randbits(62)


def deliver_to(loop: asyncio.AbstractEventLoop) -> Any:
    """A worker's `deliver` into an event loop, which is woken once a step."""

    def call(delivery: Delivery) -> None:
        for receive, progress in delivery:
            receive(progress)

    def deliver(delivery: Delivery) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(call, delivery)

    return deliver
