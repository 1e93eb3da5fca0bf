"""The same question, answered by several prefixes at once, each in its own conversation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

from ptune.data.messages import check_text
from ptune.data.prompt import Conversation, Example
from ptune.data.rows import BadRecord
from ptune.errors import DataError
from ptune.generation.sampling import Sampling
from ptune.serving.answers import Answer, Answers, random_seed
from ptune.serving.log import log_answer

_SHOWN_EVERY = 0.05  # seconds; a page shows no more, and each time costs the whole conversation


@dataclass
class Side:
    """A conversation with one prefix.

    Attributes:
        name: of the prefix.
        history: earlier questions and answers, oldest first.
        said: the answer so far.
        example: what the model sees, once it is known; says what did not fit.
    """

    name: str
    history: Sequence[tuple[str, str]]
    said: str = ""
    example: Example | None = field(default=None, repr=False)


async def answer_sides(
    answers: Answers,
    sides: Sequence[Side],
    question: str,
    context: str,
    sampling: Sampling,
    system: str = "",
) -> AsyncIterator[None]:
    """Let all sides answer; yields whenever there is more to show of them.

    Sides draw with one seed: what differs between two answers is their prefixes.

    Args:
        answers: of the server.
        sides: which are filled in.
        question: the same for all.
        context: a text that it is about; what does not fit of it is cut.
        sampling: its seed is not used.
        system: instruction in front of every conversation.

    Raises:
        PTuneError: a side cannot answer, or not go on; the others end, too.
    """
    try:
        check_text(question, "the question")
        check_text(context, "the background text", blank_is_fine=True)
    except BadRecord as error:
        raise DataError(f"{error}; write it anew") from error
    if len(sides) > (most := answers.worker.capacity):
        raise DataError(
            f"{len(sides)} answers side by side are more than the {most} that this server takes at "
            "once; leave the bare model out, or start it with a larger --max-slots"
        )
    sampling = replace(sampling, seed=random_seed())
    begun: list[Answer] = []
    telling: list[asyncio.Task[None]] = []
    changed = asyncio.Event()

    async def tell(side: Side, answer: Answer) -> None:
        try:
            async for piece in answer.pieces():
                side.said += piece.text
                changed.set()
        finally:
            changed.set()

    try:
        for side in sides:
            conversation = Conversation.from_turns(question, None, side.history, system, context)
            side.example = await answers.shortened(conversation, sampling.max_new_tokens)
            answer = answers.begin(side.example.input_ids, side.name, sampling, tell=log_answer)
            begun.append(answer)
            telling.append(asyncio.create_task(tell(side, answer)))
        yield  # what did not fit is known
        while not all(task.done() for task in telling):
            await changed.wait()
            await asyncio.sleep(_SHOWN_EVERY)
            changed.clear()
            for task in telling:
                if task.done():
                    task.result()
            yield
    finally:  # also when nobody looks any more
        for answer in begun:
            answer.close()
        for task in telling:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*telling, return_exceptions=True)
