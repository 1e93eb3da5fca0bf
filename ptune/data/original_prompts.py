"""The prompts of the four generations: what stands around and between messages.

Those of THUDM/ChatGLM-6B and ChatGLM2-6B `ptuning/main.py`, and of THUDM/ChatGLM3 and THUDM/GLM-4
`finetune_demo`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ptune.data.messages import ASSISTANT, SYSTEM, USER, Message
from ptune.data.prompt_source import IGNORE_INDEX, Source
from ptune.data.tool_forms import describe_for_glm4


def _rounds(messages: Sequence[Message], gap: str, number: int) -> list[tuple[int, str]]:
    """Questions and answers in numbered rounds, the last one open; whose text each piece is."""
    parts: list[tuple[int, str]] = []
    for index, message in enumerate(messages):
        if message.role == USER:
            parts.append((index, f"[Round {number}]{gap}问："))
            parts += _instruction(messages) if index < 2 else []
            parts.append((index, f"{message.prompt}{gap}答："))
            number += 1
        elif message.role == ASSISTANT:
            parts.append((index, f"{message.content}{gap}"))
    return parts


def _instruction(messages: Sequence[Message]) -> list[tuple[int, str]]:
    """Where there is no role for a system instruction, it leads the first question."""
    first = messages[0]
    return [(0, f"{first.content}\n")] if first.role == SYSTEM and first.content.strip() else []


def _owners(tokenizer: Any, parts: Sequence[tuple[int, str]], ids: list[int]) -> list[int | None]:
    """Whose text each id of the joined parts is; an id of two parts is the later one's."""
    owners: list[int | None] = []
    text = ""
    for owner, part in parts:
        text += part
        # As many ids as the text has that ends here, up to where what follows changes them.
        same = [a == b for a, b in zip(tokenizer.encode_text(text), ids, strict=False)]
        owners += [owner] * ([*same, False].index(False) - len(owners))
    return owners + [parts[-1][0]] * (len(ids) - len(owners))


def render_chatglm(tokenizer: Any, messages: Sequence[Message], trace: bool) -> Source:
    """A single question stands as it is; rounds count from 0."""
    if any(message.role == ASSISTANT for message in messages):
        parts = _rounds(messages, gap="\n", number=0)
    else:
        parts = [*_instruction(messages), (len(messages) - 1, messages[-1].prompt)]
    marks = [tokenizer.gmask_token_id, tokenizer.bos_token_id]
    ids = tokenizer.encode_text("".join(text for _, text in parts))
    # The original's label row begins with <sop>, which [gMASK] predicts.
    labels = [IGNORE_INDEX] * (len(ids) + 1) + marks[1:]
    owners = [*_owners(tokenizer, parts, ids), None, None] if trace else []
    return Source(ids + marks, labels, owners, tail=len(marks))


def render_chatglm2(tokenizer: Any, messages: Sequence[Message], trace: bool) -> Source:
    """Every question stands in a round, counted from 1."""
    parts = _rounds(messages, gap="\n\n", number=1)
    marks = [tokenizer.get_command("[gMASK]"), tokenizer.get_command("sop")]
    ids = tokenizer.encode_text("".join(text for _, text in parts))
    newline = tokenizer.encode_text("\n")[-1]
    asking = tokenizer.encode_text("\n\n答：")
    tail = len(asking) - asking.index(newline)
    owners = [None, None, *_owners(tokenizer, parts, ids)] if trace else []
    return Source(marks + ids, [IGNORE_INDEX] * (len(ids) + 2), owners, tail)


def spell(tokenizer: Any, message: Message, newline: list[int]) -> list[int]:
    """A message under a role, without the token of its role and without tools."""
    head = tokenizer.encode_text(f"{message.metadata}\n") if message.metadata else newline
    return [*head, *tokenizer.encode_text(message.prompt)]


def render_chatglm3(tokenizer: Any, messages: Sequence[Message], trace: bool) -> Source:
    """Messages under role tokens, tools behind the instruction."""

    def with_tools(message: Message, newline: list[int]) -> list[int]:
        text = f"{message.content}\n{message.tools}"
        return spell(tokenizer, replace(message, content=text), newline)

    return _under_roles(tokenizer, messages, trace, with_tools)


def render_glm4(tokenizer: Any, messages: Sequence[Message], trace: bool) -> Source:
    """Messages under role tokens, tools in a system message of their own, before the instruction.

    Of a record, `finetune.py` of the original learns what ChatGLM3's does: every answer without the
    role in front of it, and the token behind it.  Behind the last one that is `<|user|>`, as in a
    chat; it was `<|endoftext|>` in the first release.
    """

    def with_tools(message: Message, newline: list[int]) -> list[int]:
        said = [*newline, *tokenizer.encode_text(describe_for_glm4(message.tools))]
        if message.content.strip():
            said += [tokenizer.get_command("<|system|>"), *spell(tokenizer, message, newline)]
        return said

    return _under_roles(tokenizer, messages, trace, with_tools)


def _under_roles(
    tokenizer: Any,
    messages: Sequence[Message],
    trace: bool,
    with_tools: Callable[[Message, list[int]], list[int]],
) -> Source:
    """Messages under role tokens; every answer of the history is learnt too, as in the original.

    A label stands one place behind what asks for it: the role token asks, and the token that ends
    an answer is the role token of whoever speaks next.
    """
    ids = tokenizer.build_inputs_with_special_tokens([])
    labels = [IGNORE_INDEX] * len(ids)
    owners: list[int | None] = [None] * len(ids)
    newline = tokenizer.encode_text("\n")
    learnt = False
    for index, message in enumerate(messages):
        role = tokenizer.get_command(f"<|{message.role}|>")
        has_tools = bool(message.tools)
        said = with_tools(message, newline) if has_tools else spell(tokenizer, message, newline)
        ids += [role, *said]
        labels.append(role if learnt else IGNORE_INDEX)
        learnt = message.role == ASSISTANT and message.learn is not False
        labels += said if learnt else [IGNORE_INDEX] * len(said)
        owners += [index] * (1 + len(said))
    ids.append(tokenizer.get_command("<|assistant|>"))
    labels.append(ids[-1] if learnt else IGNORE_INDEX)
    owners.append(len(messages))
    return Source(ids, labels, owners if trace else [], tail=1)
