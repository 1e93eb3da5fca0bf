"""Calls of tools in answers, read as data.

ChatGLM3 writes a tool's name, a line break, and Python that calls `tool_call` with its arguments;
THUDM/ChatGLM3 evaluates that.  Here the arguments must be literals.  GLM-4 writes the name, a line
break, and the arguments as JSON.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ptune.base.folder import Generation
from ptune.data.tool_forms import tool_names
from ptune.errors import PTuneError
from ptune.files.json_decoding import DECODER
from ptune.files.json_text import to_json

_CALL = re.compile(
    r"\s*([^\n`(]{1,200})\n\s*```(?:python)?\s*(tool_call\(.*\))\s*```\s*", re.DOTALL
)


class ToolCall(NamedTuple):
    """A call.

    Attributes:
        name: of the tool.
        arguments: a JSON object, as text.
    """

    name: str
    arguments: str


CallReader = Callable[[str], ToolCall | None]


def call_reader(generation: Generation, tools: str) -> CallReader | None:
    """What finds the call that an answer is; None where there are no tools to call.

    Args:
        generation: whose answers they are.
        tools: that the model was told of, JSON from `read_tools`.
    """
    if not (tools and generation.has_roles):
        return None
    if generation is Generation.GLM4:
        return partial(read_json_call, names=tool_names(tools))
    return read_tool_call


def read_json_call(answer: str, names: frozenset[str]) -> ToolCall | None:
    """Find the call that an answer of GLM-4 is, or None where it is none that can be read.

    Args:
        answer: the text.
        names: of the tools: a line of text in front of JSON may be anything.
    """
    name, _, written = answer.strip().partition("\n")
    if (name := name.strip()) not in names:
        return None
    try:
        arguments = DECODER.decode(written)
        if not isinstance(arguments, dict):
            return None
        text = to_json(arguments)
        text.encode()  # an escape can spell half a character
        return ToolCall(name, text)
    except (PTuneError, ValueError, RecursionError):
        return None


def read_tool_call(answer: str) -> ToolCall | None:
    """Find the call that an answer of ChatGLM3 is, or None where it is none that can be read."""
    if (found := _CALL.fullmatch(answer)) is None:
        return None
    name, code = found.groups()
    try:
        call = ast.parse(code, mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        arguments: dict[str, Any] = {}
        for keyword in call.keywords:
            value = ast.literal_eval(keyword.value)
            arguments.update(value if keyword.arg is None else {keyword.arg: value})
        written = to_json(arguments)
        written.encode()  # an escape can spell half a character
        return ToolCall(name.strip(), written)
    except (PTuneError, ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
