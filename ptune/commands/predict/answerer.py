"""A model and its tokenizer, which answer shards; in this process or in a worker's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ptune.commands.predict.shards import Shard
from ptune.config.shared_settings import GeneratingSettings
from ptune.data.messages import ASSISTANT
from ptune.data.prompt import Conversation, Example, render
from ptune.data.tokenizer import build_tokenizer
from ptune.device.full_memory import memory_advice
from ptune.device.precision import choose_device, choose_dtype
from ptune.evaluation.answering import ADVICE, Answering, as_decoded, load
from ptune.generation.generate import generate_all

Answered = tuple[Shard, list[dict[str, Any]]]
TURNS_CUT, CONTEXT_CUT, PROMPT_CUT, ANSWER_CUT = "turns", "context", "prompt", "answer"


def dtype_of(settings: GeneratingSettings) -> str:
    """The precision that a model has here.

    Raises:
        ConfigError: from `choose_dtype`.
    """
    dtype = choose_dtype(settings.dtype, choose_device(settings.device))
    return str(dtype).removeprefix("torch.")


class Answerer:
    """Answers shards.

    Args:
        answering: from `with_weights`.
        settings: of the command.

    Raises:
        PTuneError: the model cannot be loaded.
    """

    def __init__(self, answering: Answering, settings: GeneratingSettings) -> None:
        self._answering = answering
        self._settings = settings
        self._tokenizer = build_tokenizer(answering.base)
        self._model = load(answering, settings)

    def answer(
        self, shard: Shard, advanced: Callable[[int], None] = lambda count: None
    ) -> list[dict[str, Any]]:
        """Answer the records of a shard.

        The engine is made anew, so that what a shard comes to does not depend on those before it.

        Args:
            shard: with its records.
            advanced: told of the records that are answered.

        Returns:
            For each record, in their order: `index` in its file, `line`, `prompt` (what was asked
            last), `labels` (the response, if it has one), `predict`, `tokens` of the answer, and
            `cut`, what did not fit, if anything.

        Raises:
            PTuneError: logits that are not finite, or memory that is full.
        """
        base, lengths = self._answering.base, self._answering.lengths
        prompts = [
            render(self._tokenizer, base.generation, Conversation(record.asked), lengths)
            for record in shard.records
        ]
        answers: dict[int, list[int]] = {}
        with memory_advice(ADVICE):
            for batch in generate_all(
                self._model,
                [prompt.input_ids for prompt in prompts],
                self._settings.batch_size,
                self._answering.sampling,
                self._settings.seed,
                first=shard.first,
            ):
                answers |= dict(batch)
                advanced(len(batch))
        return [
            self._line(shard, place, prompt, answers[shard.first + place])
            for place, prompt in enumerate(prompts)
        ]

    def _line(self, shard: Shard, place: int, prompt: Example, ids: list[int]) -> dict[str, Any]:
        record = shard.records[place]
        asked = next(said for said in reversed(record.asked) if said.role != ASSISTANT)
        line = {"index": shard.first + place, "line": record.line, "prompt": asked.content}
        if record.answer is not None:
            line["labels"] = as_decoded(self._tokenizer, record.answer)
        line["predict"] = self._tokenizer.decode(ids, skip_special_tokens=True).strip()
        line["tokens"] = len(ids)
        marks = {
            TURNS_CUT: prompt.turns_dropped > 0,
            CONTEXT_CUT: prompt.context_cut is not None,
            PROMPT_CUT: prompt.prompt_cut,
            ANSWER_CUT: len(ids) == self._answering.sampling.max_new_tokens,
        }
        if any(marks.values()):
            line["cut"] = [name for name, is_cut in marks.items() if is_cut]
        return line
