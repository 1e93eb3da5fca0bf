"""Messages as transformers' `apply_chat_template` takes them, to ids by `prompt.render`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from transformers.utils import get_json_schema

from ptune.data.messages import ASSISTANT, Message, read_messages, read_tools, with_system
from ptune.data.prompt import Conversation, Lengths, render
from ptune.data.rows import BadRecord
from ptune.data.tool_forms import ToolForm, tool_form
from ptune.errors import ConfigError, DataError

_ENCODING = ("padding", "truncation", "max_length", "return_tensors")
_ROOM = Lengths(10**9, 10**9)  # nothing is cut here


def encode(
    tokenizer: Any,
    conversation: Any,
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    tokenize: bool = True,
    return_dict: bool = True,
    **options: Any,
) -> Any:
    """Do what transformers' `apply_chat_template` does, by rendering.

    No text becomes a control token; so the string that `tokenize=False` gives is for reading alone:
    encoded again it would be another prompt.

    Args:
        tokenizer: from `load_tokenizer`.
        conversation: messages as docs/data.md has them, or a batch of such lists.
        tools: JSON schemas of tools, or functions to describe, for ChatGLM3 and GLM-4.
        add_generation_prompt: ask for an answer; a question of ChatGLM-6B and ChatGLM2 does so
            always.  Without, an answer at the end is closed by its end token, as in training.
        continue_final_message: leave the answer at the end open.
        tokenize: give ids; else a string for reading.
        return_dict: give a `BatchEncoding`; else the ids alone.
        options: `padding`, `truncation`, `max_length`, `return_tensors`, `tokenizer_kwargs`.

    Raises:
        DataError: a message that is none, or none that the generation has a prompt for.
        ConfigError: an option that there is not, or two that exclude each other.
    """
    if add_generation_prompt and continue_final_message:
        raise ConfigError(
            "add_generation_prompt and continue_final_message exclude each other; use one of them"
        )
    if options.pop("chat_template", None) or tokenizer.chat_template:
        raise ConfigError(
            "a chat_template of your own cannot write control tokens, which no text becomes; leave "
            "it out for the model's own prompt"
        )
    encoding = dict(options.pop("tokenizer_kwargs", None) or {})
    encoding |= {name: options.pop(name) for name in _ENCODING if name in options}
    options.pop("sanitize_control_tokens", None)  # as always
    if unknown := [name for name, value in options.items() if value]:
        raise ConfigError(f"apply_chat_template of ptune has no {unknown[0]}; leave it out")
    said = getattr(conversation, "messages", conversation)
    batched = isinstance(said, list | tuple) and bool(said) and not isinstance(said[0], dict)
    rows = []
    for messages in said if batched else [said]:
        own = getattr(messages, "messages", messages)
        read = _read(own, tools, tool_form(tokenizer.generation))
        rows.append(_ids(tokenizer, read, add_generation_prompt, continue_final_message))
    if not tokenize:
        return [_spell(tokenizer, ids) for ids in rows] if batched else _spell(tokenizer, rows[0])
    encoded = tokenizer(rows if batched else rows[0], add_special_tokens=False, **encoding)
    return encoded if return_dict else encoded["input_ids"]


def _ids(
    tokenizer: Any, said: Sequence[Message], add_generation_prompt: bool, keep_open: bool
) -> list[int]:
    last = said[-1]
    if last.role == ASSISTANT and not add_generation_prompt:
        conversation = Conversation(tuple(said[:-1]), last)
    elif keep_open:
        raise DataError(
            f"continue_final_message finds a message of role {last.role!r} at the end, no answer; "
            "use add_generation_prompt"
        )
    else:
        conversation = Conversation(tuple(said))
    ids = render(tokenizer, tokenizer.generation, conversation, _ROOM).input_ids
    asks = conversation.response is None and tokenizer.generation.has_roles
    if keep_open or (asks and not add_generation_prompt):
        ids.pop()  # the end token, or <|assistant|>
    return ids


def _read(messages: Any, tools: Sequence[Any] | None, form: ToolForm) -> list[Message]:
    unused: set[str] = set()
    try:
        said = read_messages(messages, "the conversation", unused, False, form)
        if tools:
            described = [get_json_schema(tool) if callable(tool) else tool for tool in tools]
            said = with_system(said, "", read_tools(described, "tools"), form)
    except BadRecord as error:
        raise DataError(str(error)) from error
    if unused:
        warnings.warn(f"not used: {', '.join(sorted(unused))}", stacklevel=4)
    return said


def _spell(tokenizer: Any, ids: Sequence[int]) -> str:
    """Ids as text for people, control tokens spelt out; it is no text to encode again."""
    text, plain = "", []
    control = {tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    for i in ids:
        if i not in control:
            plain.append(tokenizer.convert_ids_to_tokens(i))
            continue
        text += tokenizer.convert_tokens_to_string(plain) + tokenizer.convert_ids_to_tokens(i)
        plain = []
    return text + str(tokenizer.convert_tokens_to_string(plain))
