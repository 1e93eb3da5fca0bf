"""From a conversation to ids and loss mask: the one place that knows the prompts.

Training, evaluation and chat all render here.  The prompts and the layout of a training example are
the original's: THUDM/ChatGLM-6B and ChatGLM2-6B `ptuning/main.py`, THUDM/ChatGLM3 and THUDM/GLM-4
`finetune_demo`.
Whatever a text says, none of it becomes a control token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ptune.base.folder import Generation
from ptune.data.context import ContextCut, longest_beginning, most_that_fit
from ptune.data.messages import ASSISTANT, OBSERVATION, SYSTEM, USER, Message
from ptune.data.original_prompts import (
    render_chatglm,
    render_chatglm2,
    render_chatglm3,
    render_glm4,
    spell,
)
from ptune.data.prompt_source import IGNORE_INDEX, Source
from ptune.data.template_prompt import render_template, render_template_text
from ptune.data.tool_forms import unfit_for_glm4
from ptune.data.truncation import TURNS
from ptune.errors import DataError


@dataclass(frozen=True)
class Conversation:
    """What was said.

    Attributes:
        messages: what the model sees before it answers, oldest first.
        response: the answer to learn; None when it is to be generated.
    """

    messages: tuple[Message, ...]
    response: Message | None = None

    @classmethod
    def from_turns(
        cls,
        prompt: str,
        response: str | None = None,
        history: Sequence[Sequence[str]] = (),
        system: str = "",
        context: str = "",
    ) -> Conversation:
        """A conversation of questions and answers.

        Args:
            prompt: the question to answer now.
            response: the answer to learn; None when it is to be generated.
            history: earlier questions and answers, oldest first.
            system: instruction in front of the first turn; blank is none.
            context: what the question of now is about; blank is none.
        """
        messages = [Message(SYSTEM, system)] if system.strip() else []
        for query, answer in history:
            messages += [Message(USER, query), Message(ASSISTANT, answer)]
        messages.append(Message(USER, prompt, context=context))
        return cls(tuple(messages), None if response is None else Message(ASSISTANT, response))


@dataclass(frozen=True)
class Lengths:
    """How many tokens there is room for.

    Attributes:
        max_source_length: tokens of the prompt side.
        max_target_length: tokens of the response side.
        truncation: `turns` drops the oldest turns first, then cuts the last question's context,
            then the prompt at its end, and keeps the marker that asks for an answer; `original`
            cuts as the original did.
    """

    max_source_length: int
    max_target_length: int
    truncation: str = TURNS


WHOLE = Lengths(10**9, 10**9)  # nothing is cut


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
        context_cut: what of the last question's context did not fit; None if nothing was cut.
        prompt_cut: whether tokens of the prompt were lost besides.
        response_cut: whether tokens of the response were lost.
        owners: of a traced example, as long as `input_ids`: the message that a token is of, counted
            from 0 and the response last; None for the frame around all of them.
    """

    input_ids: list[int]
    labels: list[int]
    turns_dropped: int = 0
    prompt_cut: bool = False
    response_cut: bool = False
    context_cut: ContextCut | None = None
    owners: list[int | None] = field(default_factory=list)


def refusal(generation: Generation, conversation: Conversation) -> str:
    """Why a generation has no prompt for a conversation; empty if it has one."""
    messages = conversation.messages
    if not messages:
        return "a conversation without a message asks nothing; put a question into it"
    if generation.has_roles:
        return _unfit_tools(generation, messages)
    said = messages if conversation.response is None else (*messages, conversation.response)
    at = int(said[0].role == SYSTEM)
    for number, message in enumerate(said):
        what = _only_with_roles(message)
        if not what and number >= at and message.role != (ASSISTANT if (number - at) % 2 else USER):
            what = f"message {number + 1}, of role {message.role!r} at this place,"
        if what:
            return (
                f"{what} has no place in the prompt of {generation.model_name}; "
                "use ChatGLM3-6B or GLM-4-9B, which have roles for it, or leave it out"
            )
    if messages[-1].role != USER:
        return f"the last message, of role {messages[-1].role!r}, asks nothing; end with a question"
    return ""


def _unfit_tools(generation: Generation, messages: Sequence[Message]) -> str:
    if generation is not Generation.GLM4:
        return ""
    for message in messages:
        if message.tools and (tool := unfit_for_glm4(message.tools)) is not None:
            return f"tool {tool[:60]} has no name, by which GLM-4 knows it; give it a 'name'"
    return ""


def _only_with_roles(message: Message) -> str:
    if message.role == OBSERVATION:
        return "a tool's reply"
    if message.metadata:
        return f"metadata {message.metadata!r}, a tool that is called,"
    return "a description of tools" if message.tools else ""


def learns(generation: Generation, conversation: Conversation) -> bool:
    """Whether a conversation leaves anything to learn."""
    if conversation.response is not None and conversation.response.learn is not False:
        return True
    earlier = conversation.messages if generation.has_roles else ()
    return any(said.role == ASSISTANT and said.learn is not False for said in earlier)


def render(
    tokenizer: Any,
    generation: Generation,
    conversation: Conversation,
    lengths: Lengths,
    trace: bool = False,
) -> Example:
    """Turn a conversation into one training example, or into a prompt to generate from.

    Args:
        tokenizer: from `load_tokenizer`.
        generation: whose prompt to use.
        conversation: with a response for training, without for generation.
        lengths: room for both sides.
        trace: find out which message every token is of, which takes a little longer.

    Raises:
        DataError: the generation has no prompt for such a conversation.
    """
    if reason := refusal(generation, conversation):
        raise DataError(reason)
    limit = _source_limit(generation, lengths.max_source_length)
    # Of a chat template, whose frame is longer than most questions, nothing may be lost.
    native = generation is Generation.NATIVE
    keep_tail = native or lengths.truncation == TURNS
    source, dropped, context_cut, question_cut = _fit(
        _RENDERERS[generation], tokenizer, conversation, limit, trace, keep_tail, native
    )
    response = conversation.response
    if generation.has_roles and not keep_tail and response is not None:
        return _original_with_roles(tokenizer, generation, source, conversation, lengths)
    # ChatGLM-6B's cut is always in front of [gMASK] <sop>: without them there is no answer at all.
    kept = source.cut(limit, keep_tail or generation is Generation.CHATGLM)
    prompt_cut = question_cut or len(kept.ids) < len(source.ids)
    if response is None:
        labels = [IGNORE_INDEX] * len(kept.ids)
        return Example(
            kept.ids, labels, dropped, prompt_cut, context_cut=context_cut, owners=kept.owners
        )
    target = _target(tokenizer, generation, response)
    room = _target_limit(generation, lengths.max_target_length)
    answer = [*target[:room], tokenizer.end_of_answer_id]
    labels = kept.labels + _labels(tokenizer, generation, response, answer)
    if not learns(generation, conversation):
        labels = [IGNORE_INDEX] * len(labels)  # not even the <sop> of ChatGLM-6B
    return Example(
        input_ids=kept.ids + answer,
        labels=labels,
        turns_dropped=dropped,
        prompt_cut=prompt_cut,
        response_cut=len(target) > room,
        context_cut=context_cut,
        owners=kept.owners + [len(conversation.messages)] * len(answer) if trace else [],
    )


def render_text(tokenizer: Any, generation: Generation, text: str) -> list[int]:
    """A text that stands in front of any prompt, as an instruction would; its ids.

    Args:
        tokenizer: from `load_tokenizer`.
        generation: ChatGLM3 and GLM-4 have a role for it; ChatGLM-6B's `[gMASK] <sop>` stand behind
            all text.
        text: is stripped.
    """
    if generation is Generation.NATIVE:
        return render_template_text(tokenizer, text)
    if generation.has_roles:
        system = [Message(SYSTEM, text.strip())]
        return _RENDERERS[generation](tokenizer, system, False).ids[:-1]
    ids: list[int] = tokenizer.encode_text(text.strip())
    if generation is Generation.CHATGLM:
        return ids
    return [tokenizer.get_command("[gMASK]"), tokenizer.get_command("sop"), *ids]


def as_context(tokenizer: Any, generation: Generation, ids: Sequence[int]) -> list[int]:
    """A rendered example as text that other prompts may follow.

    ChatGLM-6B knows a context's end by `[gMASK] <sop>`: inside of one, lines end in their places.
    """
    if generation is not Generation.CHATGLM:
        return list(ids)
    newline = tokenizer.encode_text("\n")
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    marks = ends | {tokenizer.gmask_token_id}
    return [i for id in ids for i in (newline if id in ends else [] if id in marks else [id])]


def measure_context(
    tokenizer: Any, generation: Generation, conversation: Conversation, max_source_length: int
) -> ContextCut | None:
    """What `render` would cut of the last question's context, for those who refuse it instead.

    Args:
        tokenizer: from `load_tokenizer`.
        generation: whose prompt to use.
        conversation: whose earlier turns are dropped first.
        max_source_length: tokens of the prompt side.

    Returns:
        None if all of it fits.

    Raises:
        DataError: the generation has no prompt for such a conversation.
    """
    # Without one, all turns would be dropped, one by one, to find nothing.
    if not any(message.context.strip() for message in conversation.messages):
        return None
    lengths = Lengths(max_source_length, max_source_length)
    asked = replace(conversation, response=None)
    return render(tokenizer, generation, asked, lengths).context_cut


def _fit(
    renderer: _Renderer,
    tokenizer: Any,
    conversation: Conversation,
    limit: int,
    trace: bool,
    cut: bool,
    cut_question: bool = False,
) -> tuple[Source, int, ContextCut | None, bool]:
    """The prompt side, and what had to go to make it fit.

    First the oldest turns, then some context, then with `cut_question` some of the question.
    """
    messages = conversation.messages
    # A turn is a question and all that follows it up to the next one.
    starts = [i for i, message in enumerate(messages) if message.role == USER]
    source, dropped, first, gone = renderer(tokenizer, messages, trace), 0, len(messages), 0
    left, context_cut = messages, None

    def with_last(turns: int) -> tuple[Message, ...]:
        return messages[: starts[0]] + messages[starts[-turns] :]

    def fits(turns: int) -> bool:
        return len(renderer(tokenizer, with_last(turns), False).ids) <= limit

    if cut and len(source.ids) > limit and len(starts) > 1:
        # The fewer turns, the fewer tokens; the last one stays.
        kept = max(1, most_that_fit(len(starts) - 1, fits))
        dropped = len(starts) - kept
        first, gone = starts[0], starts[dropped] - starts[0]
        left = with_last(kept)
        source = renderer(tokenizer, left, trace)
    if cut and len(source.ids) > limit and starts and messages[starts[-1]].context.strip():
        left, context_cut = _cut_context(renderer, tokenizer, left, starts[-1] - gone, limit)
        source = renderer(tokenizer, left, trace)
    shorten = cut_question and len(source.ids) > limit
    if shorten:
        left = _cut_question(renderer, tokenizer, left, starts[-1] - gone, limit)
        source = renderer(tokenizer, left, trace)
    moved = [i if i is None or i < first else i + gone for i in source.owners]
    fitted = Source(source.ids, source.labels, moved, source.tail)
    return fitted, dropped, context_cut, shorten


def _cut_context(
    renderer: _Renderer, tokenizer: Any, messages: Sequence[Message], index: int, limit: int
) -> tuple[tuple[Message, ...], ContextCut]:
    """Leave as much of the beginning of a message's context as fits, by whole characters."""
    context = messages[index].context.strip()

    def with_beginning(beginning: str) -> tuple[Message, ...]:
        said = replace(messages[index], context=beginning)
        return (*messages[:index], said, *messages[index + 1 :])

    def fits(beginning: str) -> bool:
        return len(renderer(tokenizer, with_beginning(beginning), False).ids) <= limit

    kept = longest_beginning(context, fits).rstrip()
    tokens, kept_tokens = (len(tokenizer.encode_text(text)) for text in (context, kept))
    return with_beginning(kept), ContextCut(tokens, kept_tokens, len(context), len(kept))


def _cut_question(
    renderer: _Renderer, tokenizer: Any, messages: Sequence[Message], index: int, limit: int
) -> tuple[Message, ...]:
    """Leave as much of the beginning of a message as fits, by whole characters.

    Raises:
        DataError: not even a few characters of it do.
    """

    def with_beginning(beginning: str) -> tuple[Message, ...]:
        said = replace(messages[index], content=beginning)
        return (*messages[:index], said, *messages[index + 1 :])

    def fits(beginning: str) -> bool:
        return len(renderer(tokenizer, with_beginning(beginning), False).ids) <= limit

    if not (kept := longest_beginning(messages[index].content, fits).rstrip()):
        frame = len(renderer(tokenizer, with_beginning(""), False).ids)
        raise DataError(
            f"the chat template and the instruction take {frame:,} tokens, which leaves none of "
            f"--max-source-length {limit:,} for the question; use {frame + 64:,} or more"
        )
    return with_beginning(kept)


def _source_limit(generation: Generation, max_source_length: int) -> int:
    # The original leaves room for one of the two control tokens of ChatGLM-6B, and adds both.
    return max_source_length + 1 if generation is Generation.CHATGLM else max_source_length


def _target_limit(generation: Generation, max_target_length: int) -> int:
    return max_target_length - 2 if generation is Generation.CHATGLM else max_target_length


def _target(tokenizer: Any, generation: Generation, response: Message) -> list[int]:
    if generation.has_roles:
        return spell(tokenizer, response, tokenizer.encode_text("\n"))
    ids: list[int] = tokenizer.encode_text(response.content)
    return ids


def _labels(
    tokenizer: Any, generation: Generation, response: Message, answer: list[int]
) -> list[int]:
    """The answer with its end token; ChatGLM2 pads with a real id, which it never learns."""
    if response.learn is False:
        return [IGNORE_INDEX] * len(answer)
    if generation is Generation.CHATGLM2:
        return [IGNORE_INDEX if i == tokenizer.pad_token_id else i for i in answer]
    return answer


def _original_with_roles(
    tokenizer: Any,
    generation: Generation,
    source: Source,
    conversation: Conversation,
    lengths: Lengths,
) -> Example:
    """ChatGLM3's and GLM-4's own cut: what stands after the last position is lost, the end, too."""
    response = conversation.response
    assert response is not None
    answer = [*_target(tokenizer, generation, response), tokenizer.end_of_answer_id]
    ids = source.ids + answer
    labels = source.labels + _labels(tokenizer, generation, response, answer)
    owners = source.owners + [len(conversation.messages)] * len(answer) if source.owners else []
    total = lengths.max_source_length + lengths.max_target_length + 1
    return Example(
        input_ids=ids[:total],
        labels=labels[:total],
        prompt_cut=len(source.ids) > total,
        response_cut=len(ids) > total,
        owners=owners[:total],
    )


_Renderer = Callable[[Any, Sequence[Message], bool], Source]
_RENDERERS: dict[Generation, _Renderer] = {
    Generation.CHATGLM: render_chatglm,
    Generation.CHATGLM2: render_chatglm2,
    Generation.CHATGLM3: render_chatglm3,
    Generation.GLM4: render_glm4,
    Generation.NATIVE: render_template,
}
