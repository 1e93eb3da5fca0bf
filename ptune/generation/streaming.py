"""Streaming of an answer: generation in a thread, incremental detokenization."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Generator
from typing import Any

from transformers import PreTrainedModel

from ptune.errors import ConfigError
from ptune.generation.generate import generate_one
from ptune.generation.sampling import Sampling

_LEAST_PROMPT = 32  # tokens that the context must leave for the prompt
# What the next token may still change: whitespace (the end of an answer is stripped), half a
# character, and the beginning of `<n>` or `<|blank_2|>`, which ChatGLM-6B spells whitespace with.
_UNSETTLED = re.compile(r"(?:\s|\ufffd|<(?:n|\|[a-z_0-9]{0,8}\|?)?)+\Z")
_HALF_CHARACTERS = re.compile(r"[\s\ufffd]+\Z")


class TextStream:
    """Turns ids into pieces of text whose sum is the stripped text of all ids.

    For each new id only a window of ids is decoded.  It begins where the text was settled, and its
    first part was returned already: a word at the very beginning would lose its blank.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._settled = 0  # ids of the window whose text is given out in full
        self._given = 0  # characters of the window's text
        self._begun = False

    def push(self, token_id: int) -> str:
        """Add an id; return the text that is settled by it, perhaps nothing."""
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


def max_prompt_length(context: int, max_new_tokens: int) -> int:
    """The most tokens of a prompt that fit a model's context beside the longest answer.

    Args:
        context: tokens that the model can see at once.
        max_new_tokens: of the answer.

    Raises:
        ConfigError: they are too few.
    """
    length = context - max_new_tokens
    if length < _LEAST_PROMPT:
        raise ConfigError(
            f"max_new_tokens {max_new_tokens} leaves {max(length, 0)} tokens for the question in "
            f"the context of {context}; use {context // 2} or less"
        )
    return length


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
        input_ids: the rendered prompt, see `max_prompt_length`.
        sampling: its parameters.
        stop: set it to end the answer after the current token.

    Raises:
        Exception: whatever the generation raised.
    """
    closed = threading.Event()
    results: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()

    def stopped() -> bool:
        return closed.is_set() or (stop is not None and stop.is_set())

    def generate() -> None:
        try:
            for token_id in generate_one(model, input_ids, sampling, stopped):
                results.put(token_id)
            results.put(None)
        except BaseException as error:
            results.put(error)

    text = TextStream(tokenizer)
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
