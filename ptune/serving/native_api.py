"""The interface of the original's `api.py`: `POST /`.

THUDM/ChatGLM-6B and ChatGLM2-6B.  A field that is missing, null or 0 has the original's value, but
for a temperature of 0, which is greedy; other fields than these, which the original ignored, are
refused.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from ptune.config.shared_settings import TEMPERATURE_RANGE
from ptune.data.messages import check_text
from ptune.data.prompt import Conversation
from ptune.errors import DataError
from ptune.generation.sampling import Sampling
from ptune.serving.answers import Answers, random_seed
from ptune.serving.openai_schema import Temperature
from ptune.serving.options import Serving

_MAX_LENGTH, _TOP_P, _TEMPERATURE = 2048, 0.7, 0.95


class Question(BaseModel):
    """The body.

    Attributes:
        prompt: the question.
        history: earlier questions and answers, oldest first.
        max_length: most tokens of prompt and answer together.
        top_p: nucleus of the distribution.
        temperature: flattens or sharpens it; 0 is greedy.
        context: a text that the question is about.
        model: name of a prefix.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str
    history: Annotated[list[list[str]], Field(max_length=500)] | None = None
    max_length: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None
    temperature: Annotated[Temperature, Field(le=TEMPERATURE_RANGE.most)] | None = None
    context: str | None = None
    model: str | None = None


class NativeApi:
    """The handler.

    Args:
        answers: of the server.
        serving: how it answers.
    """

    def __init__(self, answers: Answers, serving: Serving) -> None:
        self._answers = answers
        self._serving = serving
        self.router = APIRouter()
        self.router.post("/")(self.ask)

    async def ask(self, body: Question) -> dict[str, Any]:
        """Answer a question."""
        history = body.history or []
        if any(len(turn) != 2 for turn in history):
            raise DataError("history holds something else than [question, answer] pairs")
        check_text(body.prompt, "prompt")
        for text in (body.context or "", *(text for turn in history for text in turn)):
            check_text(text, "history and context", blank_is_fine=True)
        conversation = Conversation.from_turns(
            body.prompt, None, history, self._serving.system, body.context or ""
        )
        ids = await self._answers.prompt(conversation, 1)
        length = min(body.max_length or _MAX_LENGTH, self._answers.context)
        if (room := length - len(ids)) < 1:
            raise DataError(
                f"{len(ids):,} tokens of the prompt leave no room for an answer in max_length "
                f"{length:,}; shorten the history, or ask for more"
            )
        temperature = _TEMPERATURE if body.temperature is None else body.temperature
        sampling = Sampling(
            room if body.max_length else min(room, self._serving.max_new_tokens),
            temperature > 0,
            body.top_p or _TOP_P,
            temperature or 1.0,
            seed=random_seed(),
        )
        answer = self._answers.begin(ids, body.model or self._serving.default, sampling)
        try:
            response = "".join([piece.text async for piece in answer.pieces()])
        finally:
            answer.close()
        return {
            "response": response,
            "history": [*history, [body.prompt, response]],
            "status": 200,
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
