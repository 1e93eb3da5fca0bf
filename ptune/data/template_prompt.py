"""The prompt of a model that transformers has itself: the chat template of its tokenizer.

A template writes one string, in which a text could spell a control token.  What a text spells is
taken out before, and put back as plain text.  Without a template, a question stands alone on its
lines, as a model that has only read on expects it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ptune.data.messages import SYSTEM, USER, Message
from ptune.data.prompt_source import IGNORE_INDEX, Source

# Around the number of what was taken out: no characters, which no text may hold.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_TAKEN = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


def render_template(tokenizer: Any, messages: Sequence[Message], trace: bool) -> Source:
    """Write messages and what asks for an answer.

    Args:
        tokenizer: from `build_template_tokenizer`.
        messages: questions and answers in turn, perhaps behind an instruction.
        trace: find out whose each token is.
    """
    taken: list[str] = []
    said = [(message.role, _shielded(tokenizer, message.prompt, taken)) for message in messages]
    if tokenizer.chat_template:
        text = _filled(tokenizer, said)
        ids: list[int] = []
    else:
        text = "".join(f"{content}\n" for _, content in said if content.strip())
        ids = _beginning(tokenizer)
    spans = _spans(text, [content for _, content in said])
    places = [0] * len(ids)
    at = 0
    for number, part in enumerate(_TAKEN.split(text)):
        if number % 2:
            spelt = tokenizer.encode_text(taken[int(part)])
            ids += spelt
            places += [at] * len(spelt)
            at += len(_OPEN + part + _CLOSE)
            continue
        encoded = tokenizer(part, add_special_tokens=False, return_offsets_mapping=True)
        ids += encoded["input_ids"]
        places += [at + start for start, _ in encoded["offset_mapping"]]
        at += len(part)
    end = spans[-1][1]
    tail = sum(place >= end for place in places)
    owners = [_owner(place, spans) for place in places] if trace else []
    return Source(ids, [IGNORE_INDEX] * len(ids), owners, tail)


def render_template_text(tokenizer: Any, text: str) -> list[int]:
    """A text that stands in front of any prompt, on lines of its own."""
    ids: list[int] = tokenizer.encode_text(f"{text.strip()}\n")
    return [*_beginning(tokenizer), *ids]


def _filled(tokenizer: Any, said: Sequence[tuple[str, str]]) -> str:
    roles = [{"role": role, "content": content} for role, content in said]
    if said[0][0] == SYSTEM and not tokenizer.has_system_role:
        # Where there is no role for an instruction, it leads the first question.
        first = next(i for i, (role, _) in enumerate(said) if role == USER)
        roles[first]["content"] = f"{said[0][1]}\n{said[first][1]}"
        del roles[0]
    return tokenizer.fill_template(roles)  # type: ignore[no-any-return]


def _beginning(tokenizer: Any) -> list[int]:
    """What the tokenizer puts in front of every text."""
    bos = tokenizer.bos_token_id
    whole = tokenizer("a")["input_ids"]
    return [bos] if bos is not None and whole[:1] == [bos] else []


def _shielded(tokenizer: Any, text: str, taken: list[str]) -> str:
    """Take out of a text what would become a control token.

    Args:
        tokenizer: whose they are.
        text: of a message.
        taken: what was taken out so far; each part's number stands in the text in its place.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    spans = [tuple(span) for index, span in pairs if index in tokenizer.control_ids]
    spans += [match.span() for match in re.finditer(f"[{_OPEN}{_CLOSE}]", text)]
    for start, end in sorted(spans, reverse=True):
        spelt, mark = text[start:end], f"{_OPEN}{len(taken)}{_CLOSE}"
        text = text[:start] + mark + text[end:]
        taken.append(spelt)
    return text


def _spans(text: str, contents: Sequence[str]) -> list[tuple[int, int]]:
    """Where each message stands in a prompt; templates may strip them."""
    spans, at = [], 0
    for content in contents:
        start = text.find(content.strip(), at)
        if start < 0:  # the template has changed it
            start = at
            spans.append((start, start))
            continue
        at = start + len(content.strip())
        spans.append((start, at))
    return spans


def _owner(place: int, spans: Sequence[tuple[int, int]]) -> int | None:
    return next((i for i, (start, end) in enumerate(spans) if start <= place < end), None)
