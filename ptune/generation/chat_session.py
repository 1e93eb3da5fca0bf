"""A conversation with a loaded model: questions, answers, history, and the prefix on or off."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ptune.base.folder import Generation
from ptune.data.prompt import Conversation, Example, Lengths, render
from ptune.data.seeds import derive_seed
from ptune.errors import ConfigError, DataError
from ptune.files.json_text import to_json
from ptune.generation.sampling import Sampling
from ptune.generation.streaming import max_prompt_length, stream_reply
from ptune.models.trained import bare, describe_trained


class ChatSession:
    """A conversation with a loaded model.

    Args:
        model: from `load_model`.
        tokenizer: from `load_tokenizer`.
        generation: whose prompt to use.
        sampling: how to choose tokens; its seed is that of the conversation.
        system: instruction in front of the first turn.
        context: a text that every question is about; blank is none.

    Attributes:
        history: questions and answers so far, oldest first.
        notices: what the user should know about the prompt of the last `reply`.
        prefix_on: whether answers use the prefix.

    Raises:
        ConfigError: the longest answer leaves no room for a question.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        generation: Generation,
        sampling: Sampling,
        system: str = "",
        context: str = "",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.generation = generation
        self.sampling = sampling
        self.system = system
        self.history: list[tuple[str, str]] = []
        self.notices: list[str] = []
        self.prefix_on = self.trained is not None
        positions = int(model.config.max_position_embeddings)
        self._room = max_prompt_length(positions, sampling.max_new_tokens)
        self._told_of_drop = False
        self._last_context = ""  # that of the last turn
        self.context = context
        self._told_of_cut = False
        self._asked = 0

    @property
    def trained(self) -> str | None:
        """What stands beside the model, a prefix or a LoRA, on or off; None without."""
        return describe_trained(self.model)

    def reply(self, prompt: str, stop: threading.Event | None = None) -> Generator[str, None, None]:
        """Answer in pieces; what was said, also if stopped, joins the history.

        Args:
            prompt: the question.
            stop: set it to end the answer.

        Raises:
            DataError: the question is no text that could be encoded or saved.
        """
        _check_question(prompt)
        context = self.context
        conversation = Conversation.from_turns(prompt, None, self.history, self.system, context)
        lengths = Lengths(self._room, self.sampling.max_new_tokens)
        example = render(self.tokenizer, self.generation, conversation, lengths)
        self.notices = self._look_at(example)
        return self._stream(prompt, example.input_ids, stop)

    def _stream(
        self, prompt: str, input_ids: list[int], stop: threading.Event | None
    ) -> Generator[str, None, None]:
        context = self.context
        without = contextlib.nullcontext() if self.prefix_on else bare(self.model)
        said: list[str] = []
        # The same question, asked again, is answered with other draws.
        seed = derive_seed(self.sampling.seed, "question", self._asked)
        sampling = dataclasses.replace(self.sampling, seed=seed)
        self._asked += 1
        pieces = stream_reply(self.model, self.tokenizer, input_ids, sampling, stop)
        try:
            # In this order, so that the worker has ended when the prefix comes back.
            with without, contextlib.closing(pieces):
                for piece in pieces:
                    said.append(piece)
                    yield piece
        finally:
            if said:
                self.history.append((prompt, "".join(said)))
                self._last_context = context

    def _look_at(self, example: Example) -> list[str]:
        context = self.model.config.max_position_embeddings
        notices = []
        if example.turns_dropped and not self._told_of_drop:
            self._told_of_drop = True
            notices.append(
                f"the oldest turns no longer fit the context of {context} tokens: the model does "
                f"not see the first {example.turns_dropped} of {len(self.history)}"
            )
        if example.context_cut and not self._told_of_cut:
            self._told_of_cut = True
            notices.append(
                f"the text that the question is about is longer than fits: {example.context_cut}"
            )
        if example.prompt_cut:
            notices.append(f"the question is longer than the context of {context}: its end is cut")
        return notices

    def clear(self) -> None:
        """Forget the conversation."""
        self.history.clear()
        self._told_of_drop = False

    def set_context(self, context: str) -> None:
        """Ask about a text from now on; a blank one is none."""
        self.context = context
        self._told_of_cut = False

    def set_prefix(self, enabled: bool) -> None:
        """Answer with the prefix or LoRA, or as the bare model.

        Raises:
            ConfigError: there is no prefix to turn on.
        """
        if enabled and self.trained is None:
            raise ConfigError("this model has no prefix; start with --checkpoint DIR to load one")
        self.prefix_on = enabled

    def save(self, file: Path) -> None:
        """Write the conversation as one record of training data.

        Raises:
            DataError: nothing was said yet, the file exists, or it cannot be written.
        """
        if not self.history:
            raise DataError(f"nothing was said yet that {file} could hold; ask something first")
        *earlier, (prompt, response) = self.history
        record = {"prompt": prompt, "response": response, "history": earlier}
        if self.system.strip():
            record["system"] = self.system
        if self._last_context.strip():
            record["context"] = self._last_context
        try:
            with file.open("x", encoding="utf-8", newline="\n") as out:
                out.write(to_json(record) + "\n")
        except FileExistsError as error:
            raise DataError(f"{file} exists already; name a new file") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{file} cannot be written ({reason}); name another file") from error


def _check_question(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = text[error.start]
        # A byte of a pipe, or from a broken paste half of an emoji.
        byte = "\udc80" <= found <= "\udcff"
        what = f"the byte 0x{ord(found) - 0xDC00:02x}" if byte else f"half a character, {found!r},"
        raise DataError(
            f"the question holds {what} at character {error.start + 1}, which is not UTF-8; "
            "ask it anew"
        ) from error
