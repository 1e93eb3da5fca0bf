"""Answers that come piece by piece: generation in a thread, ids to text without half characters."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Generator
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ptune.errors import ConfigError
from ptune.generate import Sampling

_LEAST_PROMPT = 32  # tokens a context must leave for the question
# What the next token may still change: whitespace (the end of an answer is stripped), half a
# character, and the beginning of `<n>` or `<|blank_2|>`, which ChatGLM-6B spells whitespace with.
_UNSETTLED = re.compile(r"(?:\s|\ufffd|<(?:n|\|[a-z_0-9]{0,8}\|?)?)+\Z")
_HALF_CHARACTERS = re.compile(r"[\s\ufffd]+\Z")


class _IdStreamer(BaseStreamer):  # type: ignore[misc]
    """Hands over every new id; what comes first is the prompt."""

    def __init__(self, results: queue.SimpleQueue[int | BaseException | None]) -> None:
        self._results = results
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self._results.put(int(value))
        self._prompt_seen = True

    def end(self) -> None:
        """The worker says so itself, also after an error."""


class _FlagCriteria(StoppingCriteria):  # type: ignore[misc]
    """Ends generation after the token in which a flag was set."""

    def __init__(self, flags: list[threading.Event]) -> None:
        self._flags = flags

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        stopped = any(flag.is_set() for flag in self._flags)
        return torch.full((input_ids.shape[0],), stopped, device=input_ids.device)


class _TextStream:
    """Turns ids into pieces of text whose sum is the stripped text of all ids.

    Only a window of ids is decoded again for each new one.  It begins at a place where the text was
    settled, and its first part was shown already: a word at the very beginning would lose its
    blank.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._settled = 0  # ids of the window whose text is given out in full
        self._given = 0  # characters of the window's text
        self._begun = False

    def push(self, token_id: int) -> str:
        """Add an id; return what can be shown now, perhaps nothing."""
        self._window.append(token_id)
        text = self._decode()
        ready = _UNSETTLED.sub("", text)
        piece = self._take(ready)
        if piece and len(ready) == len(text):
            self._window = self._window[self._settled :]
            self._settled = len(self._window)
            self._given = len(self._decode())
        return piece

    def finish(self) -> str:
        """Return the rest; half a character at the end of a cut answer is left out."""
        return self._take(_HALF_CHARACTERS.sub("", self._decode()))

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self._window, skip_special_tokens=True))

    def _take(self, ready: str) -> str:
        piece = ready[self._given :]
        if not self._begun:
            piece = piece.lstrip()  # ChatGLM3 begins its answers with a newline
        self._begun |= bool(piece)
        self._given = max(self._given, len(ready))
        return piece


def prompt_room(model: PreTrainedModel, max_new_tokens: int) -> int:
    """How many tokens of prompt fit the model's context beside the longest answer.

    Raises:
        ConfigError: too few for a question.
    """
    context = int(model.config.max_position_embeddings)
    room = context - max_new_tokens
    if room < _LEAST_PROMPT:
        raise ConfigError(
            f"max_new_tokens {max_new_tokens} leaves {max(room, 0)} tokens for the question in the "
            f"context of {context}; use {context // 2} or less"
        )
    return room


def stream_reply(
    model: PreTrainedModel,
    tokenizer: Any,
    input_ids: list[int],
    sampling: Sampling,
    stop: threading.Event | None = None,
) -> Generator[str, None, None]:
    """Generate an answer and yield its text as it comes.

    The pieces add up to the stripped text of the answer; a character is never shown in halves.
    Closing the iterator ends the generation and waits for it.

    Args:
        model: from `load_model`.
        tokenizer: from `load_tokenizer`.
        input_ids: the rendered prompt, see `prompt_room`.
        sampling: how to choose tokens.
        stop: set it to end the answer after the token at work.

    Raises:
        Exception: whatever the generation raised.
    """
    closed = threading.Event()
    flags = [closed] if stop is None else [closed, stop]
    results: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()

    def generate() -> None:
        ids = torch.tensor([input_ids], device=model.device)
        try:
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                streamer=_IdStreamer(results),
                stopping_criteria=StoppingCriteriaList([_FlagCriteria(flags)]),
                eos_token_id=model.generation_config.eos_token_id,
                pad_token_id=model.generation_config.pad_token_id,
                **sampling.arguments(),
            )
            results.put(None)
        except BaseException as error:
            results.put(error)

    text = _TextStream(tokenizer)
    worker = threading.Thread(target=generate, name="ptune-generate", daemon=True)
    worker.start()
    try:
        while (result := results.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            if piece := text.push(result):
                yield piece
        if piece := text.finish():
            yield piece
    finally:
        closed.set()
        worker.join()
