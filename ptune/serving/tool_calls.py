"""Calls of tools in ChatGLM3's answers, read as data.

The model writes a tool's name, a line break, and Python that calls `tool_call` with its arguments;
THUDM/ChatGLM3 evaluates that.  Here the arguments must be literals.
"""

from __future__ import annotations

import ast
import re
from typing import Any, NamedTuple

from ptune.errors import PTuneError
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


def read_tool_call(answer: str) -> ToolCall | None:
    """Find the call that an answer is, or None where it is none that can be read."""
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
