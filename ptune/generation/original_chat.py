"""`ptune.chat`: one question and its answer, called as the original's `model.chat` was.

The defaults are those of `chat` in `modeling_chatglm.py` of THUDM/chatglm-6b, chatglm2-6b,
chatglm3-6b and glm-4-9b-chat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ptune.base.folder import Generation
from ptune.config.declaration import Range, shown
from ptune.config.shared_settings import NUCLEUS_RANGE, TEMPERATURE_RANGE
from ptune.data.messages import check_text, describe
from ptune.data.prompt import WHOLE, Conversation, measure_context, render
from ptune.data.rows import BadRecord
from ptune.errors import ConfigError, DataError
from ptune.generation.sampling import Sampling
from ptune.generation.streaming import stream_reply

_DEFAULTS = {  # max_length, top_p, temperature
    Generation.CHATGLM: (2048, 0.7, 0.95),
    Generation.CHATGLM2: (8192, 0.8, 0.8),
    Generation.CHATGLM3: (8192, 0.8, 0.8),
    Generation.GLM4: (8192, 0.8, 0.8),
    Generation.NATIVE: (8192, 0.8, 0.8),
}


def chat(
    model: PreTrainedModel,
    tokenizer: Any,
    query: str,
    history: Sequence[Sequence[str]] | None = None,
    *,
    context: str = "",
    max_length: int | None = None,
    do_sample: bool = True,
    top_p: float | None = None,
    temperature: float | None = None,
) -> tuple[str, list[tuple[str, str]]]:
    """Ask a question.

    Args:
        model: from `load_model`.
        tokenizer: from `load_tokenizer`.
        query: the question.
        history: earlier questions and answers, oldest first; it is not changed.
        context: a text that the question is about; it is no part of the history.
        max_length: tokens of prompt and answer together; by default the original's 2048, for
            the others 8192, or what the model can see at once if that is less.
        do_sample: draw the answer; else take the likeliest token each time.
        top_p: nucleus of the distribution; by default the original's 0.7, else 0.8.
        temperature: flattens or sharpens the distribution; by default 0.95, and 0.8.

    Returns:
        The answer, and a new history that ends with this question and answer.

    Raises:
        ConfigError: the tokenizer is not ptune's, or a number is out of range or has no effect.
        DataError: the question is blank, the history holds something else than pairs of texts, or
            the prompt leaves no room for an answer.
        ModelError: the logits are not finite.
    """
    generation = _generation_of(tokenizer)
    positions = int(model.config.max_position_embeddings)
    length, usual_top_p, usual_temperature = _DEFAULTS[generation]
    length = _checked("max_length", max_length, min(length, positions), Range(2, positions))
    for name, value in (("top_p", top_p), ("temperature", temperature)):
        if value is not None and not do_sample:
            raise ConfigError(
                f"{name} {shown(value)} has no effect with do_sample=False; leave one of them out"
            )
    top_p = _checked("top_p", top_p, usual_top_p, NUCLEUS_RANGE)
    temperature = _checked("temperature", temperature, usual_temperature, TEMPERATURE_RANGE)
    turns = _read_history(history or [])
    for text, where in ((query, "the question"), (context, "the context")):
        _check_text(text, where)
    if not query.strip():
        raise DataError(f"the question {query!r} is blank; ask something")
    asked = Conversation.from_turns(query, None, turns, context=context)
    prompt = render(tokenizer, generation, asked, WHOLE).input_ids
    if len(prompt) >= length:
        raise _too_long(tokenizer, asked, len(prompt), length)
    seed = int(torch.randint(2**63 - 1, ()))  # so that `torch.manual_seed` repeats an answer
    sampling = Sampling(length - len(prompt), do_sample, top_p, temperature, seed=seed)
    response = "".join(stream_reply(model, tokenizer, prompt, sampling))
    return response, [*turns, (query, response)]


def _generation_of(tokenizer: Any) -> Generation:
    generation = getattr(tokenizer, "generation", None)
    if isinstance(generation, Generation):
        return generation
    raise ConfigError(
        f"the tokenizer is a {type(tokenizer).__name__}, whose prompt ptune does not know; "
        "use ptune.load_tokenizer"
    )


def _too_long(tokenizer: Any, asked: Conversation, tokens: int, length: int) -> DataError:
    """The refusal of a prompt, with the numbers."""
    # Two less: one for an answer, and one more that ChatGLM-6B's prompt may have.
    if cut := measure_context(tokenizer, tokenizer.generation, asked, length - 2):
        return DataError(
            f"the context is too long for max_length {length:,}: {cut}; pass less of it"
        )
    what = "history" if len(asked.messages) > 1 else "question"
    return DataError(
        f"the prompt of {tokens:,} tokens leaves no room for an answer in max_length {length:,}; "
        f"pass a shorter {what}"
    )


def _checked(name: str, value: Any, usual: Any, within: Range) -> Any:
    """A number, the usual one if it is not given."""
    if value is None:
        return usual
    if not isinstance(value, type(usual) | int) or value not in within:
        raise ConfigError(f"{name} {shown(value)} is out of range; use {within}")
    return type(usual)(value)


def _read_history(history: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    turns = []
    for number, pair in enumerate(history, 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(
                f"turn {number} of the history is {describe(pair)}; pass (question, answer) pairs"
            )
        for text in pair:
            _check_text(text, f"turn {number} of the history")
        turns.append((pair[0], pair[1]))
    return turns


def _check_text(text: Any, where: str) -> None:
    try:
        check_text(text, where, blank_is_fine=True)
    except BadRecord as error:
        raise DataError(f"{error}; pass text") from error
