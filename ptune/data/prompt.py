"""From a conversation to ids and loss mask: the one place that knows the prompts.

Training, evaluation and chat all render here.  The prompts and the layout of a training example are
the original's: THUDM/ChatGLM-6B and ChatGLM2-6B `ptuning/main.py`, THUDM/ChatGLM3 `finetune_demo`.
Whatever a text says, none of it becomes a control token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ptune.base.folder import Generation

IGNORE_INDEX = -100
TURNS = "turns"
ORIGINAL = "original"
TRUNCATIONS = (TURNS, ORIGINAL)


@dataclass(frozen=True)
class Conversation:
    """What was said.

    Attributes:
        prompt: the question to answer now.
        response: the answer to learn; None when it is to be generated.
        history: earlier questions and answers, oldest first.
        system: instruction in front of the first turn; only ChatGLM3 has a role for it.
    """

    prompt: str
    response: str | None = None
    history: Sequence[Sequence[str]] = ()
    system: str = ""


@dataclass(frozen=True)
class Lengths:
    """How many tokens there is room for.

    Attributes:
        max_source_length: tokens of the prompt side.
        max_target_length: tokens of the response side.
        truncation: `turns` drops the oldest turns first, then cuts the prompt at its end, and keeps
            the marker that asks for an answer; `original` cuts as the original did.
    """

    max_source_length: int
    max_target_length: int
    truncation: str = TURNS


def default_target_length(generation: Generation) -> int:
    """`--max-target-length` of the original's train.sh."""
    return 64 if generation is Generation.CHATGLM else 128


@dataclass(frozen=True)
class Example:
    """A rendered conversation.

    Attributes:
        input_ids: prompt and, if there is one, response with its end token.
        labels: as long as `input_ids`; `IGNORE_INDEX` where the loss does not look.
        turns_dropped: earlier turns that did not fit.
        prompt_cut: whether tokens of the prompt were lost.
        response_cut: whether tokens of the response were lost.
    """

    input_ids: list[int]
    labels: list[int]
    turns_dropped: int = 0
    prompt_cut: bool = False
    response_cut: bool = False


@dataclass(frozen=True)
class _Source:
    """The prompt side; the last `tail` ids ask for the answer and are never cut by `turns`."""

    ids: list[int]
    labels: list[int]
    tail: int

    def cut(self, length: int, keep_tail: bool) -> _Source:
        if len(self.ids) <= length:
            return self
        tail = min(self.tail, length) if keep_tail else 0
        keep = [*range(length - tail), *range(len(self.ids) - tail, len(self.ids))]
        return _Source([self.ids[i] for i in keep], [self.labels[i] for i in keep], self.tail)


def render(
    tokenizer: Any, generation: Generation, conversation: Conversation, lengths: Lengths
) -> Example:
    """Turn a conversation into one training example, or into a prompt to generate from.

    Args:
        tokenizer: from `load_tokenizer`.
        generation: whose prompt to use.
        conversation: with a response for training, without for generation.
        lengths: room for both sides.
    """
    rounds = _RENDERERS[generation]
    limit = _source_limit(generation, lengths.max_source_length)
    keep_tail = lengths.truncation == TURNS
    source = rounds(tokenizer, conversation)
    dropped = 0
    while keep_tail and len(source.ids) > limit and dropped < len(conversation.history):
        dropped += 1
        rest = Conversation(
            conversation.prompt,
            conversation.response,
            conversation.history[dropped:],
            conversation.system,
        )
        source = rounds(tokenizer, rest)
    if generation is Generation.CHATGLM3 and not keep_tail and conversation.response is not None:
        return _original_chatglm3(tokenizer, source, conversation.response, lengths)
    # ChatGLM-6B's cut is always in front of [gMASK] <sop>: without them there is no answer at all.
    kept = source.cut(limit, keep_tail or generation is Generation.CHATGLM)
    prompt_cut = len(kept.ids) < len(source.ids)
    if conversation.response is None:
        return Example(kept.ids, [IGNORE_INDEX] * len(kept.ids), dropped, prompt_cut)
    target = _target(tokenizer, generation, conversation.response)
    room = _target_limit(generation, lengths.max_target_length)
    labels = kept.labels + _target_labels(tokenizer, generation, target[:room])
    return Example(
        input_ids=kept.ids + target[:room] + [tokenizer.eos_token_id],
        labels=labels,
        turns_dropped=dropped,
        prompt_cut=prompt_cut,
        response_cut=len(target) > room,
    )


def _source_limit(generation: Generation, max_source_length: int) -> int:
    # The original leaves room for one of the two control tokens of ChatGLM-6B, and adds both.
    return max_source_length + 1 if generation is Generation.CHATGLM else max_source_length


def _target_limit(generation: Generation, max_target_length: int) -> int:
    return max_target_length - 2 if generation is Generation.CHATGLM else max_target_length


def _target(tokenizer: Any, generation: Generation, response: str) -> list[int]:
    ids: list[int] = tokenizer.encode_text(response)
    return tokenizer.encode_text("\n") + ids if generation is Generation.CHATGLM3 else ids


def _target_labels(tokenizer: Any, generation: Generation, target: list[int]) -> list[int]:
    """The response and its end token; ChatGLM2 pads with a real id, which it never learns."""
    labels = [*target, tokenizer.eos_token_id]
    if generation is Generation.CHATGLM2:
        return [IGNORE_INDEX if i == tokenizer.pad_token_id else i for i in labels]
    return labels


def _original_chatglm3(tokenizer: Any, source: _Source, response: str, lengths: Lengths) -> Example:
    """ChatGLM3's own cut: whatever stands after the last position is lost, end token included."""
    target = [*_target(tokenizer, Generation.CHATGLM3, response), tokenizer.eos_token_id]
    total = lengths.max_source_length + lengths.max_target_length + 1
    ids, labels = source.ids + target, source.labels + target
    return Example(
        input_ids=ids[:total],
        labels=labels[:total],
        prompt_cut=len(source.ids) > total,
        response_cut=len(ids) > total,
    )


def _with_system(conversation: Conversation) -> list[tuple[str, str]]:
    """All turns, the open one last with an empty answer; the instruction leads the first."""
    turns = [(query, answer) for query, answer in conversation.history]
    turns.append((conversation.prompt, ""))
    if conversation.system:
        turns[0] = (f"{conversation.system}\n{turns[0][0]}", turns[0][1])
    return turns


def _render_chatglm(tokenizer: Any, conversation: Conversation) -> _Source:
    """A single question stands as it is; rounds count from 0."""
    *history, (query, _) = _with_system(conversation)
    text = query
    if history:
        rounds = [f"[Round {i}]\n问：{q}\n答：{a}\n" for i, (q, a) in enumerate(history)]
        text = "".join(rounds) + f"[Round {len(history)}]\n问：{query}\n答："
    marks = [tokenizer.gmask_token_id, tokenizer.bos_token_id]
    ids = tokenizer.encode_text(text)
    # The original's label row begins with <sop>, which [gMASK] predicts.
    labels = [IGNORE_INDEX] * (len(ids) + 1) + [tokenizer.bos_token_id]
    return _Source(ids + marks, labels, tail=len(marks))


def _render_chatglm2(tokenizer: Any, conversation: Conversation) -> _Source:
    """Every question stands in a round, counted from 1."""
    *history, (query, _) = _with_system(conversation)
    rounds = [f"[Round {i}]\n\n问：{q}\n\n答：{a}\n\n" for i, (q, a) in enumerate(history, 1)]
    text = "".join(rounds) + f"[Round {len(history) + 1}]\n\n问：{query}\n\n答："
    marks = [tokenizer.get_command("[gMASK]"), tokenizer.get_command("sop")]
    ids = marks + tokenizer.encode_text(text)
    newline = tokenizer.encode_text("\n")[-1]
    asking = tokenizer.encode_text("\n\n答：")
    tail = len(asking) - asking.index(newline)
    return _Source(ids, [IGNORE_INDEX] * len(ids), tail)


def _render_chatglm3(tokenizer: Any, conversation: Conversation) -> _Source:
    """Messages under role tokens; every answer of the history is learnt too, as in the original."""
    command, newline = tokenizer.get_command, tokenizer.encode_text("\n")
    ids = [command("[gMASK]"), command("sop")]
    labels = [IGNORE_INDEX] * len(ids)

    def say(role: str, text: str, learnt: bool) -> None:
        message = [*newline, *tokenizer.encode_text(text)]
        ids.extend([command(role), *message])
        # A label stands one place behind what asks for it: the role token, and after an answer the
        # next role token, which ends it.
        labels.append(ids[-len(message) - 1] if after_answer else IGNORE_INDEX)
        labels.extend(message if learnt else [IGNORE_INDEX] * len(message))

    after_answer = False
    if conversation.system:
        say("<|system|>", conversation.system, learnt=False)
    for query, answer in conversation.history:
        say("<|user|>", query, learnt=False)
        after_answer = False
        say("<|assistant|>", answer, learnt=True)
        after_answer = True
    say("<|user|>", conversation.prompt, learnt=False)
    ids.append(command("<|assistant|>"))
    labels.append(IGNORE_INDEX)
    return _Source(ids, labels, tail=1)


_RENDERERS: dict[Generation, Callable[[Any, Conversation], _Source]] = {
    Generation.CHATGLM: _render_chatglm,
    Generation.CHATGLM2: _render_chatglm2,
    Generation.CHATGLM3: _render_chatglm3,
}
