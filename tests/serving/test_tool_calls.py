"""Calls of tools as data; nothing of an answer is run."""

import json

import pytest

from ptune.serving.tool_calls import read_tool_call


def call(code, name="get_weather"):
    return f"{name}\n ```python\n{code}\n```"


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("tool_call(location='北京')", {"location": "北京"}),
        (
            "tool_call(n=1, x=-2.5, yes=True, none=None)",
            {"n": 1, "x": -2.5, "yes": True, "none": None},
        ),
        ("tool_call(a=[1, {'b': (2, 3)}])", {"a": [1, {"b": [2, 3]}]}),
        ("tool_call(**{'not a name': 1}, b=2)", {"not a name": 1, "b": 2}),
        ("tool_call()", {}),
    ],
)
def test_arguments(code, arguments):
    found = read_tool_call(call(code))
    assert found.name == "get_weather"
    assert json.loads(found.arguments) == arguments


@pytest.mark.parametrize(
    "answer",
    [
        "北京今天晴。",
        call("tool_call(x=__import__('os').system('false'))"),
        call("tool_call(x=open('a'))"),
        call("tool_call(1)"),
        call("tool_call(x=1e999)"),
        call("tool_call(x={1})"),
        call("tool_call(x='\\ud800')"),
        call("tool_call(x='a' * 10**9)"),
        call("tool_call(x=1)(y=2)") + "!",
        call("tool_call(" + "(" * 500 + ")" * 500 + ")"),
        call("other(x=1)"),
        "",
    ],
)
def test_what_is_none_stays_text(answer):
    assert read_tool_call(answer) is None
