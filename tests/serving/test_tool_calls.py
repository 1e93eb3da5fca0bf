"""Calls of tools as data; nothing of an answer is run."""

import json

import pytest

from ptune.base.folder import Generation
from ptune.serving.tool_calls import call_reader, read_json_call, read_tool_call


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


NAMES = frozenset({"get_weather", "find"})


@pytest.mark.parametrize(
    ("answer", "arguments"),
    [
        ('get_weather\n{"city": "北京", "days": 2}', '{"city": "北京", "days": 2}'),
        ("\n get_weather \n{}\n", "{}"),
    ],
)
def test_calls_of_glm4(answer, arguments):
    assert read_json_call(answer, NAMES) == ("get_weather", arguments)


@pytest.mark.parametrize(
    "answer",
    [
        "北京今天晴。",
        'other\n{"city": "北京"}',
        "get_weather",
        "get_weather\n",
        "get_weather\n[1]",
        'get_weather\n{"a": NaN}',
        'get_weather\n{"a": 1, "a": 2}',
        'get_weather\n{"a": "\\ud800"}',
        "get_weather\n" + "[" * 100_000,
        'get_weather\n{"a": 1} 好',
        "",
    ],
)
def test_what_is_no_call_of_glm4_stays_text(answer):
    assert read_json_call(answer, NAMES) is None


def test_who_calls():
    tools = json.dumps([{"type": "function", "function": {"name": "find"}}])
    for generation in Generation:
        assert call_reader(generation, "") is None
    assert call_reader(Generation.CHATGLM2, tools) is None
    third, fourth = (call_reader(kind, tools) for kind in (Generation.CHATGLM3, Generation.GLM4))
    assert third(call("tool_call(a=1)", "find")) == fourth('find\n{"a": 1}') == ("find", '{"a": 1}')
    assert third('find\n{"a": 1}') is fourth(call("tool_call(a=1)", "find")) is None
