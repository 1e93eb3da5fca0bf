"""The prompt of a model that transformers has itself: the chat template of its tokenizer.

A template writes one string, in which a text could spell a control token.  What a text spells is
taken out before, and put back as plain text.  Without a template, a question stands alone on its
lines, as a model that has only read on expects it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ptune.data.messages import ASSISTANT, SYSTEM, USER, Message
from ptune.data.prompt_source import IGNORE_INDEX, Source
from ptune.errors import DataError

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
        ids = tokenizer.beginning
    places = [0] * len(ids)
    plain = ""  # without control tokens, as places count it
    for part in _parts(tokenizer, text):
        if isinstance(part, int):
            ids, places = [*ids, part], [*places, len(plain)]
            continue
        spelt = _TAKEN.sub(lambda match: taken[int(match[1])], part)
        found, starts = tokenizer.encode_with_places(spelt)
        ids, places = ids + found, places + [len(plain) + start for start in starts]
        plain += spelt
    spans = _spans(tokenizer, plain, messages)
    tail = sum(place >= spans[-1][1] for place in places)
    owners = [_owner(place, spans) for place in places] if trace else []
    return Source(ids, [IGNORE_INDEX] * len(ids), owners, tail)


def _parts(tokenizer: Any, text: str) -> Iterator[int | str]:
    """A filled template as its control tokens, by id, and the texts between them.

    As the library splits it: what stands between two control tokens is encoded as a whole.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    at = 0
    for index, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if index in tokenizer.control_ids:
            if start > at:
                yield text[at:start]
            yield index
            at = end
    if at < len(text):
        yield text[at:]


def render_template_text(tokenizer: Any, text: str) -> list[int]:
    """A text that stands in front of any prompt, on lines of its own."""
    ids: list[int] = tokenizer.encode_text(f"{text.strip()}\n")
    return [*tokenizer.beginning, *ids]


def _filled(tokenizer: Any, said: Sequence[tuple[str, str]]) -> str:
    roles = [{"role": role, "content": content} for role, content in said]
    if said[0][0] == SYSTEM and not tokenizer.has_system_role:
        # Where there is no role for an instruction, it leads the first question.
        first = next(i for i, (role, _) in enumerate(said) if role == USER)
        roles[first]["content"] = f"{said[0][1]}\n{said[first][1]}"
        del roles[0]
    return tokenizer.fill_template(roles)  # type: ignore[no-any-return]


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


def _spans(tokenizer: Any, text: str, messages: Sequence[Message]) -> list[tuple[int, int]]:
    """Where each message stands in a prompt; templates may strip them.

    Raises:
        DataError: the template leaves one out, or changes it; answers it may (they may hold what
            was thought).
    """
    spans, at = [], 0
    for number, message in enumerate(messages, 1):
        content = message.prompt.strip()
        if (start := text.find(content, at)) >= 0:
            at = start + len(content)
            spans.append((start, at))
        elif message.role == ASSISTANT:
            spans.append((at, at))
        else:
            raise DataError(
                f"the chat template in {tokenizer.name_or_path} leaves out or changes what message "
                f"{number}, of role {message.role!r}, says; take a model whose template writes all"
            )
    return spans


def _owner(place: int, spans: Sequence[tuple[int, int]]) -> int | None:
    return next((i for i, (start, end) in enumerate(spans) if start <= place < end), None)
