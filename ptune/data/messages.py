"""The messages of a conversation, and the ways in which people write them down.

The roles are ChatGLM3's; what OpenAI's, ShareGPT's and ChatGLM3's own formats say is put into them.
A call of a tool becomes an assistant message: the tool's name as metadata, its arguments as the
generation writes them (`tool_forms.py`).  They are data, never evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Number
from typing import Any

from ptune.data.context import with_context
from ptune.data.rows import BadRecord
from ptune.data.tool_forms import CHATGLM3_FORM, ToolForm
from ptune.files.json_decoding import DECODER, RepeatedKey, problem_of

SYSTEM, USER, ASSISTANT, OBSERVATION = "system", "user", "assistant", "observation"
# What data has besides: a call alone, and a call with its reply.
_CALL, _STEP = "call", "step"
ROLES = {
    "system": SYSTEM,
    "user": USER,
    "human": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "bot": ASSISTANT,
    "observation": OBSERVATION,
    "tool": OBSERVATION,
    "function": OBSERVATION,
    "function_call": _CALL,
    "tool_call": _CALL,
}
# What may follow what; None is the beginning.
_FOLLOWERS: dict[str | None, tuple[str, ...]] = {
    None: (SYSTEM, USER),
    SYSTEM: (USER,),
    USER: (ASSISTANT,),
    ASSISTANT: (USER, ASSISTANT, OBSERVATION),
    OBSERVATION: (ASSISTANT, OBSERVATION),
}
_LOSS_KEYS = ("loss", "train", "weight")
# What a message may say; a reply repeats the name of the tool that was called.
_KEYS = {
    SYSTEM: ("metadata", "tools", *_LOSS_KEYS),
    USER: ("metadata", *_LOSS_KEYS),
    ASSISTANT: ("metadata", "tool_calls", "function_call", *_LOSS_KEYS),
    OBSERVATION: ("metadata", "tool_call_id", "name", *_LOSS_KEYS),
    _CALL: _LOSS_KEYS,
    _STEP: ("name", "parameters", "observation", *_LOSS_KEYS),
}


@dataclass(frozen=True, slots=True)
class Message:
    """What one side said.

    Attributes:
        role: `system`, `user`, `assistant` or `observation`, which is a tool's reply.
        content: the text.
        metadata: the tool that an assistant message calls, if any.
        tools: of a system message, JSON as the prompt has it.
        learn: whether the loss looks at an assistant message; None leaves it to the generation.
        context: of a user message, the text that it is about; blank is none.
    """

    role: str
    content: str
    metadata: str = ""
    tools: str = ""
    learn: bool | None = None
    context: str = ""

    @property
    def prompt(self) -> str:
        """The text as a prompt has it."""
        return with_context(self.context, self.content)


@dataclass(frozen=True)
class _Read:
    """A message, where it was found, and the call, and its tool, that it makes or answers."""

    message: Message
    where: str
    call: str | None = None
    tool: str = ""


def read_messages(
    value: Any,
    where: str,
    unused: set[str],
    strict: bool = True,
    form: ToolForm = CHATGLM3_FORM,
    asks: bool = False,
) -> list[Message]:
    """Read a list of messages.

    Args:
        value: role/content or from/value objects.
        where: how to call the list in complaints.
        unused: names of what is not used are added.
        strict: for training: they are in order, end with an answer, and nobody is without words.
        form: how calls are written.
        asks: the last one may be a question.

    Raises:
        BadRecord: what is wrong, and in which message.
    """
    if not isinstance(value, list | tuple) or not value:
        raise BadRecord(f"{where}: expected a list of messages, found {describe(value)}")
    found: list[_Read] = []
    for number, item in enumerate(value, 1):
        found.extend(_read_message(item, f"{where}, message {number}", unused, strict, form))
    found = list(_replies_behind_calls(found))
    if strict:
        _check_order(found)
        if not asks and found[-1].message.role != ASSISTANT:
            raise BadRecord(f"{where}: expected an answer of the assistant as the last message")
    return [read.message for read in found]


def _check_order(found: Sequence[_Read]) -> None:
    before: str | None = None
    for read in found:
        role = read.message.role
        if role not in _FOLLOWERS[before]:
            expected = " or ".join(map(repr, _FOLLOWERS[before]))
            raise BadRecord(f"{read.where}: expected role {expected}, found {role!r}")
        before = role


def with_system(
    messages: list[Message], text: str, tools: str, form: ToolForm = CHATGLM3_FORM
) -> list[Message]:
    """Say an instruction and tools in the system message, the first; a blank one is left out.

    Args:
        messages: with a system message, or without.
        text: instruction; blank for none.
        tools: from `read_tools`.
        form: what leads tools that come without an instruction.

    Raises:
        BadRecord: the system message says something else already.
    """
    has_own = messages[0].role == SYSTEM
    if not (has_own or text or tools):
        return messages
    own = messages[0] if has_own else Message(SYSTEM, "")
    for what, given, said in (
        ("other words", text, own.content),
        ("other tools", tools, own.tools),
    ):
        if given.strip() and said.strip() and given != said:
            raise BadRecord(f"the system message has {what} than stand beside it; leave one out")
    text = own.content if own.content.strip() else text
    if tools and not own.tools and not text.strip():
        text = form.instruction
    if not (text.strip() or tools or own.tools):
        return messages[has_own:]
    return [replace(own, content=text, tools=own.tools or tools), *messages[has_own:]]


def _read_message(
    value: Any, where: str, unused: set[str], strict: bool, form: ToolForm
) -> Iterator[_Read]:
    if not isinstance(value, dict):
        raise BadRecord(f"{where}: expected an object, found {describe(value)}")
    role_key, text_key = ("from", "value") if "from" in value else ("role", "content")
    name = value.get(role_key)
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        roles = ", ".join(ROLES)
        raise BadRecord(f"{where}: expected {role_key!r} to be {roles}, found {describe(name)}")
    if role == OBSERVATION and not value.keys().isdisjoint(("parameters", "observation")):
        role = _STEP
    _note_unused(value, {role_key, text_key, *_KEYS[role]}, unused)
    learn = _read_learn(value, role, where, unused)
    metadata = _read_metadata(value, where)
    content = value.get(text_key)
    if role == _STEP:
        yield from _read_step(value, text_key, where, learn, form)
    elif role == _CALL:
        yield from _read_calls(content, where, learn, unused, form)
    elif role == OBSERVATION:
        call = _read_id(value.get("tool_call_id"), where)
        tool = _check_line(name, where, "a tool's name") if (name := value.get("name")) else ""
        text = check_text(content, where) if content is None else _reply_text(content, where)
        yield _Read(Message(role, text, metadata), where, call, tool)
    elif role == ASSISTANT:
        calls = [value[key] for key in ("tool_calls", "function_call") if value.get(key)]
        if not calls or metadata or says_something(content):
            text = check_text(content, where, not strict)
            yield _Read(Message(role, text, metadata, "", learn), where)
        for call in calls:
            yield from _read_calls(call, where, learn, unused, form)
    else:
        text = check_text(content, where, not strict or role == SYSTEM)
        tools = read_tools(value.get("tools"), where) if role == SYSTEM else ""
        yield _Read(Message(role, text, metadata, tools), where)


def _read_step(
    value: Any, text_key: str, where: str, learn: bool | None, form: ToolForm
) -> Iterator[_Read]:
    """ChatGLM3's own `tool`: a call and, if there is one, the reply to it."""
    if says_something(content := value.get(text_key)) and content != value.get("observation"):
        raise BadRecord(
            f"{where}: {text_key!r} says something else than 'parameters' and 'observation', the "
            "call and its reply; leave it out"
        )
    call = {"name": value.get("name"), "arguments": value.get("parameters")}
    yield _read_call(call, where, learn, set(), form)
    if "observation" in value:
        yield _Read(Message(OBSERVATION, _reply_text(value["observation"], where)), where)


def _read_calls(
    value: Any, where: str, learn: bool | None, unused: set[str], form: ToolForm
) -> Iterator[_Read]:
    """One call or a list of them, or JSON text of such."""
    calls = _parse(value, where, "a call")
    for call in calls if isinstance(calls, list | tuple) and calls else [calls]:
        yield _read_call(call, where, learn, unused, form)


def _read_call(
    value: Any, where: str, learn: bool | None, unused: set[str], form: ToolForm
) -> _Read:
    """Read `{"name": ..., "arguments": ...}`, or OpenAI's wrapping of it."""
    if not isinstance(value, dict):
        raise BadRecord(f"{where}: expected a call, found {describe(value)}")
    function = value.get("function", value)
    if not isinstance(function, dict):
        raise BadRecord(f"{where}: expected a call, found {describe(function)}")
    for part in (value,) if function is value else (value, function):
        used = {"name", "arguments"} if part is function else {"function"}
        if part is value:
            used |= {"id", "type"} if value.get("type") == "function" else {"id"}
        _note_unused(part, used, unused, "calls")
    name = _check_line(function.get("name"), where, "a tool's name")
    arguments = function.get("arguments")
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = {}
    arguments = _parse(arguments, where, f"the arguments of {name}")
    if not isinstance(arguments, dict):
        raise BadRecord(f"{where}: expected arguments by name, found {describe(arguments)}")
    # Once through JSON: what is left are values that have a literal, under names that are text.
    arguments = _parse(_to_json(arguments, where), where, f"the arguments of {name}")
    content = form.write_call(arguments)
    call = _read_id(value.get("id"), where)
    return _Read(Message(ASSISTANT, check_text(content, where), name, "", learn), where, call, name)


def _replies_behind_calls(found: Sequence[_Read]) -> Iterator[_Read]:
    at = 0
    while at < len(found):
        calls = _run(found, at, ASSISTANT)
        _check_ids([read for read in calls if read.call])
        replies = _run(found, at + len(calls), OBSERVATION)
        group = [*calls, *replies] or found[at : at + 1]
        at += len(group)
        yield from _pair(calls, replies) if replies else group


def _check_ids(calls: Sequence[_Read]) -> None:
    ids = set[str | None]()
    for read in calls:
        if read.call in ids:
            raise BadRecord(f"{read.where}: id {read.call!r} is of two calls")
        ids.add(read.call)


def _pair(calls: Sequence[_Read], replies: Sequence[_Read]) -> Iterator[_Read]:
    """Put each reply right behind its call: ChatGLM3 waits for one before it makes the next."""
    made = {read.call: read for read in calls if read.call}
    for read in replies:
        if made and read.call and read.call not in made:
            raise BadRecord(f"{read.where}: tool_call_id {read.call!r} is of no call before it")
        asked = [made[read.call]] if read.call in made else calls
        names = dict.fromkeys(call.tool for call in asked if call.tool)
        if read.tool and names and read.tool not in names:
            called = " or ".join(map(repr, names))
            raise BadRecord(f"{read.where}: a reply of {read.tool!r} to a call of {called}")
    answers = {read.call: read for read in replies if read.call in made}
    if len(answers) < len(replies):  # ids do not say which is whose
        answers = {}
    for read in calls:
        yield read
        if read.call in answers:
            yield answers[read.call]
    if not answers:
        yield from replies


def _run(found: Sequence[_Read], start: int, role: str) -> list[_Read]:
    end = start
    while end < len(found) and found[end].message.role == role:
        end += 1
    return list(found[start:end])


def _read_learn(value: Any, role: str, where: str, unused: set[str]) -> bool | None:
    """Whether a message asks to be learnt; None where it does not say."""
    said: dict[str, bool] = {}
    for key in _LOSS_KEYS:
        wish = value.get(key)
        if wish is None:
            continue
        if not isinstance(wish, int | float) or wish not in (0, 1):
            expected = "0 or 1" if key == "weight" else "true or false"
            raise BadRecord(f"{where}: expected {key!r} to be {expected}, found {describe(wish)}")
        if wish and role in (SYSTEM, USER, OBSERVATION):
            unused.add(f"{key!r} of {role} messages")
        said[key] = bool(wish)
    if len({*said.values()}) > 1:
        keys = " and ".join(map(repr, said))
        raise BadRecord(f"{where}: {keys} contradict each other")
    return next(iter(said.values()), None)


def _read_metadata(value: Any, where: str) -> str:
    metadata = value.get("metadata")
    if metadata is None or metadata == "":
        return ""
    return _check_line(metadata, where, "metadata")


def _read_id(value: Any, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise BadRecord(f"{where}: expected the id of a call to be text, found {describe(value)}")
    return value or None


def read_tools(value: Any, where: str) -> str:
    """Read descriptions of tools: JSON of any form, or JSON text.

    Returns:
        JSON as the original's prompt has it; empty where there are none.

    Raises:
        BadRecord: neither a list nor an object, or a number that is not finite.
    """
    if isinstance(value, str):
        value = _parse(value, where, "tools") if value.strip() else None
    if value is None or value in ([], {}):
        return ""
    if not isinstance(value, list | tuple | dict):
        raise BadRecord(f"{where}: expected a list of tools, found {describe(value)}")
    names = [_tool_name(tool) for tool in value] if not isinstance(value, dict) else []
    if twice := next((name for name in names if name and names.count(name) > 1), None):
        raise BadRecord(f"{where}: two tools have the name {twice!r}")
    return check_text(_to_json(value, where, indent=4), where)


def _tool_name(tool: Any) -> str | None:
    """The name of a tool, which OpenAI's form wraps; None where there is none."""
    if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
        tool = tool["function"]
    name = tool.get("name") if isinstance(tool, dict) else None
    return name if isinstance(name, str) else None


def _reply_text(value: Any, where: str) -> str:
    """What a tool replied; a reply that is no text is shown to the model as JSON."""
    return check_text(value if isinstance(value, str) else _to_json(value, where), where, True)


def _to_json(value: Any, where: str, indent: int | None = None) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise BadRecord(f"{where}: a value cannot be written as JSON ({reason})") from error


def _parse(value: Any, where: str, what: str) -> Any:
    """Decode JSON text; what is no text is taken as it is."""
    if not isinstance(value, str):
        return value
    try:
        return DECODER.decode(value)
    except RepeatedKey as error:
        raise BadRecord(f"{where}: {error} in {what}") from error
    except (ValueError, RecursionError) as error:
        found = f"{describe(value)} ({problem_of(error)})"
        raise BadRecord(f"{where}: expected {what} as JSON, found {found}") from error


def _note_unused(
    value: dict[str, Any], used: Collection[str], unused: set[str], of: str = "messages"
) -> None:
    for key in value.keys() - used:
        if says_something(value[key]):
            unused.add(f"{key!r} of {of}")


def says_something(value: Any) -> bool:
    """Whether a value that is not used would be a loss."""
    return bool(value.strip()) if isinstance(value, str) else value not in (None, [], {})


def _check_line(value: Any, where: str, what: str) -> str:
    """A name that stands on the line of the role."""
    if not isinstance(value, str) or not value.strip() or value.splitlines() != [value]:
        raise BadRecord(f"{where}: expected {what} on one line, found {describe(value)}")
    return check_text(value, where)


def check_text(value: Any, where: str, blank_is_fine: bool = False) -> str:
    """Take text that can be stored and encoded.

    Raises:
        BadRecord: no text, blank, or half a surrogate pair.
    """
    if not isinstance(value, str) or not (blank_is_fine or value.strip()):
        raise BadRecord(f"{where}: expected text, found {describe(value)}")
    try:
        value.encode("utf-8")  # Arrow stores UTF-8, and a JSON escape may leave half an emoji
    except UnicodeEncodeError as error:
        half = f"{value[error.start]!r} at character {error.start + 1}"
        raise BadRecord(f"{where}: expected text, found half a surrogate pair {half}") from error
    return value


def describe(value: Any) -> str:
    """A wrong value in a few words."""
    if isinstance(value, str):
        return repr(value[:40] + "..." * (len(value) > 40)) if value.strip() else "blank text"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, dict):
        return "an object"
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else json.dumps(value)
    if isinstance(value, Number):
        return f"the number {str(value)[:40]}"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes that are no text"
    return f"a value of type {type(value).__name__}"
