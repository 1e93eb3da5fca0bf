"""Messages in every form in which people write them, and what is wrong with one."""

import datetime
import json
import random
import re
from decimal import Decimal

import pytest

from ptune.data.messages import Message, describe, read_messages, read_tools, with_system
from ptune.data.rows import BadRecord

ASKED = {"role": "user", "content": "北京今天几度？"}
CALL = Message("assistant", "```python\ntool_call(city='北京')\n```", "get_weather")
REPLY = Message("observation", '{"temperature": 12}')
ANSWERED = {"role": "assistant", "content": "今天 12 度。"}
ANSWER = Message("assistant", "今天 12 度。")
FUNCTION = {"name": "get_weather", "arguments": {"city": "北京"}}
AS_TEXT = {"name": "get_weather", "arguments": '{"city": "北京"}'}


def read(messages, strict=True):
    unused = set()
    found = read_messages(messages, "here", unused, strict)
    assert unused == set()
    return found


def complain(messages, strict=True):
    with pytest.raises(BadRecord) as caught:
        read_messages(messages, "here", set(), strict)
    return str(caught.value)


@pytest.mark.parametrize(
    "used",
    [
        # ChatGLM3, as it is asked
        [{"role": "assistant", "metadata": CALL.metadata, "content": CALL.content},
         {"role": "observation", "content": REPLY.content}],
        # ChatGLM3, as it is tuned; the reply need not be text
        [{"role": "tool", "name": "get_weather", "parameters": {"city": "北京"},
          "observation": {"temperature": 12}}],
        # OpenAI
        [{"role": "assistant", "content": None,
          "tool_calls": [{"id": "1", "type": "function", "function": AS_TEXT}]},
         {"role": "tool", "tool_call_id": "1", "content": REPLY.content}],
        [{"role": "assistant", "content": "", "tool_calls": [{"function": FUNCTION}]},
         {"role": "tool", "name": "get_weather", "content": {"temperature": 12}}],
        # OpenAI, before
        [{"role": "assistant", "function_call": AS_TEXT, "tool_calls": []},
         {"role": "function", "name": "get_weather", "content": REPLY.content}],
        # ShareGPT
        [{"from": "function_call", "value": json.dumps(FUNCTION)},
         {"from": "observation", "value": REPLY.content}],
        [{"from": "tool_call", "value": [AS_TEXT]}, {"from": "tool", "value": {"temperature": 12}}],
    ],
    ids=["chat", "finetune_demo", "openai", "dict", "function_call", "sharegpt", "lists"],
)  # fmt: skip
def test_calls_and_replies(used):
    expected = [Message("user", ASKED["content"]), CALL, REPLY, ANSWER]
    assert read([ASKED, *used, ANSWERED]) == expected


def test_thought_before_a_call():
    thought = "我查一下天气。"
    said = [
        {"role": "assistant", "content": thought, "tool_calls": [{"function": FUNCTION}]},
        {"role": "tool", "content": REPLY.content},
    ]
    expected = [Message("assistant", thought), CALL, REPLY, ANSWER]
    assert read([ASKED, *said, ANSWERED])[1:] == expected
    apart = [{"role": "assistant", "content": thought}, {**said[0], "content": None}, said[1]]
    assert read([ASKED, *apart, ANSWERED])[1:] == expected


def call(name, number):
    return {"id": number, "function": {"name": name, "arguments": "{}"}}


def reply(number, text):
    return {"role": "tool", "tool_call_id": number, "content": text}


def said(messages):
    return [message.metadata or message.content for message in messages]


def test_what_of_a_call_is_not_used_is_named():
    function = {"name": "f", "arguments": "{}", "description": "d", "strict": None}
    calls = [
        {"id": "1", "type": "function", "function": function, "extra": 1},
        {"type": "custom", "function": {"name": "g", "arguments": {}, "type": "function"}},
    ]
    flat = {"id": "2", "name": "h", "arguments": {}, "type": "function", "index": 1}
    messages = [ASKED, {"role": "assistant", "tool_calls": calls}]
    messages.append({"from": "function_call", "value": [flat]})
    unused = set()
    read_messages(messages, "here", unused)
    named = {"'extra' of calls", "'description' of calls", "'type' of calls", "'index' of calls"}
    assert unused == named


def test_two_calls_of_one_id():
    both = {"role": "assistant", "tool_calls": [call("a", "1"), call("b", "1")]}
    for messages in ([ASKED, both], [ASKED, both, reply("1", "x"), ANSWERED]):
        assert complain(messages) == "here, message 2: id '1' is of two calls"


@pytest.mark.parametrize(
    ("replied", "complaint"),
    [
        (reply("1", "x") | {"name": "b"}, "a reply of 'b' to a call of 'a'"),
        (reply("1", "x") | {"name": "c"}, "a reply of 'c' to a call of 'a'"),
        ({"role": "function", "name": "c", "content": "x"},
         "a reply of 'c' to a call of 'a' or 'b'"),
        (reply("1", "x") | {"name": 3}, "expected a tool's name on one line, found the number 3"),
    ],
)  # fmt: skip
def test_reply_of_another_tool(replied, complaint):
    both = {"role": "assistant", "tool_calls": [call("a", "1"), call("b", "2")]}
    assert complain([ASKED, both, replied, ANSWERED]) == f"here, message 3: {complaint}"
    fine = [reply("2", "of b") | {"name": "b"}, reply("1", "of a") | {"name": "a"}]
    assert said(read([ASKED, both, *fine, ANSWERED]))[1:-1] == ["a", "of a", "b", "of b"]
    # Where no call says which tool it is of, a name contradicts nothing.
    thought = [ASKED, ANSWERED, {"role": "tool", "name": "c", "content": "x"}, ANSWERED]
    assert len(read(thought)) == 4


@pytest.mark.parametrize("given", [{"observation": "12"}, {"parameters": {}}])
def test_words_beside_a_call_and_its_reply(given):
    step = {"role": "tool", "name": "f", **given, "content": "13"}
    told = (
        "here, message 2: 'content' says something else than 'parameters' and 'observation', the "
        "call and its reply; leave it out"
    )
    assert complain([ASKED, step, ANSWERED]) == told
    shared = {"from": "tool", "name": "f", **given, "value": "13"}
    assert complain([ASKED, shared, ANSWERED]) == told.replace("content", "value")
    for fine in ({"content": ""}, {"content": None}, {"content": "13", "observation": "13"}):
        assert read([ASKED, step | fine, ANSWERED])[1].metadata == "f"


@pytest.mark.parametrize(
    ("used", "complaint"),
    [
        ({"role": "tool", "name": "f", "parameters": '{"x": 1, "x": 2}'},
         "key 'x' occurs twice in the arguments of f"),
        ({"role": "tool", "name": "f", "parameters": {"x": 1, 1: 2, "1": 3}},
         "key '1' occurs twice in the arguments of f"),
        ({"role": "function_call", "content": '{"name": "f", "arguments": {"b": 1, "b": 1}}'},
         "key 'b' occurs twice in a call"),
        ({"role": "function_call", "content": '{"name": "f", "arguments": ' + "[" * 10**5},
         "expected a call as JSON, found '{\"name\": \"f\", \"arguments\": [[[[[[[[[[[[[...' "
         "(nested too deeply)"),
        ({"role": "tool", "name": "f", "parameters": "9" * 5000},
         f"expected the arguments of f as JSON, found '{'9' * 40}...' "
         "(a number of more than 4,300 digits)"),
    ],
)  # fmt: skip
def test_json_text_of_calls(used, complaint):
    assert complain([ASKED, used, ANSWERED]) == f"here, message 2: {complaint}"


def test_replies_stand_behind_their_calls():
    both = {"role": "assistant", "tool_calls": [call("a", "1"), call("b", "2")]}
    replies = [reply("2", "of b"), reply("1", "of a")]
    first = read([ASKED, both, *replies, ANSWERED])
    assert said(first)[1:-1] == ["a", "of a", "b", "of b"]
    # Ids may come again after the next question.
    again = read([ASKED, both, *replies, ANSWERED, ASKED, both, *replies, ANSWERED])
    assert again == first + first


@pytest.mark.parametrize(
    "replies",
    [
        [{"role": "tool", "content": "x"}, {"role": "tool", "content": "y"}],
        [reply("1", "x"), {"role": "tool", "content": "y"}],
        [reply("1", "x"), reply("1", "y")],
    ],
)
def test_replies_stay_where_ids_do_not_say_whose_they_are(replies):
    both = {"role": "assistant", "tool_calls": [call("a", "1"), call("b", "2")]}
    assert said(read([ASKED, both, *replies, ANSWERED]))[1:-1] == ["a", "b", "x", "y"]


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ({}, ""),
        ("", ""),
        (None, ""),
        ({"a": "x", "b": 2}, "a='x', b=2"),
        ({"a": 1.5, "b": True, "c": None, "d": [1, "x"], "e": {"f": False}},
         "a=1.5, b=True, c=None, d=[1, 'x'], e={'f': False}"),
        ({"a": "it's", "b": '"', "c": "'\"\n\\"}, r"""a="it's", b='"', c='\'"\n\\'"""),
        # What is no name would end the call early: it becomes a key.
        ({"a b": 1, "x": 2, "): import os; f(": 3}, "x=2, **{'a b': 1, '): import os; f(': 3}"),
        ({"from": "a"}, "**{'from': 'a'}"),
    ],
)  # fmt: skip
def test_arguments_are_written_as_literals(arguments, written):
    step = {"role": "tool", "name": "f", "parameters": arguments, "observation": ""}
    found = read([ASKED, step, ANSWERED])[1]
    assert found == Message("assistant", f"```python\ntool_call({written})\n```", "f")


def test_arguments_come_back_as_data_and_nothing_is_run():
    draw = random.Random(0)
    evil = ["__import__('os')", "'); print(1); f('", "\\", "'''", '"', "\n```", "{}", "%s", "裙"]

    def value(depth=0):
        kind = draw.randrange(7 if depth < 3 else 5)
        if kind == 5:
            return [value(depth + 1) for _ in range(draw.randrange(3))]
        if kind == 6:
            return {draw.choice(evil): value(depth + 1) for _ in range(draw.randrange(3))}
        choices = ["".join(draw.choices(evil, k=3)), draw.randint(-9, 9), draw.random(), None]
        return [*choices, draw.random() < 0.5][kind]

    for _ in range(200):
        arguments = {draw.choice([*evil, "city", "ort"]): value() for _ in range(3)}
        step = {"role": "tool", "name": "f", "parameters": arguments, "observation": ""}
        content = read([ASKED, step, ANSWERED])[1].content
        code = re.fullmatch(r"```python\n(tool_call\(.*\))\n```", content, flags=re.DOTALL)[1]
        # What was written is one call with literals alone, and says what it was given.
        assert eval(code, {"__builtins__": {}, "tool_call": lambda **given: given}) == arguments


@pytest.mark.parametrize(
    ("used", "complaint"),
    [
        ({"role": "tool", "name": "f", "parameters": [1]},
         "expected arguments by name, found a list of 1"),
        ({"role": "tool", "name": "f", "parameters": "{"},
         "expected the arguments of f as JSON, found '{'"),
        ({"role": "tool", "name": "f", "parameters": {"x": float("nan")}},
         "a value cannot be written as JSON (Out of range float values are not JSON compliant"),
        ({"role": "tool", "name": "f", "parameters": '{"x": 1e999}'}, "a value cannot be written"),
        ({"role": "tool", "parameters": {}}, "expected a tool's name on one line, found nothing"),
        ({"role": "tool", "name": "a\nb", "observation": ""},
         "expected a tool's name on one line, found 'a\\nb'"),
        ({"role": "assistant", "tool_calls": ["f"]}, "expected a call, found 'f'"),
        ({"role": "assistant", "tool_calls": [{"function": "f"}]}, "expected a call, found 'f'"),
        ({"role": "assistant", "tool_calls": "["}, "expected a call as JSON, found '['"),
        ({"role": "function_call", "content": "f(x)"}, "expected a call as JSON, found 'f(x)'"),
        ({"role": "function_call", "content": None}, "expected a call, found nothing"),
        ({"role": "function_call", "content": []}, "expected a call, found an empty list"),
        ({"role": "assistant", "content": "a", "metadata": "f\n"},
         "expected metadata on one line, found 'f\\n'"),
        ({"role": "assistant", "content": "a", "metadata": 1},
         "expected metadata on one line, found the number 1"),
        ({"role": "assistant", "content": "", "metadata": "f"}, "expected text, found blank text"),
        ({"role": "assistant", "tool_calls": [{"id": 7, "function": FUNCTION}]},
         "expected the id of a call to be text, found the number 7"),
        ({"role": "assistant"}, "expected text, found nothing"),
    ],
)  # fmt: skip
def test_wrong_calls(used, complaint):
    assert complain([ASKED, used, ANSWERED]).startswith(f"here, message 2: {complaint}")


@pytest.mark.parametrize(
    ("replied", "complaint"),
    [
        (reply("3", "x"), "here, message 3: tool_call_id '3' is of no call before it"),
        ({"role": "tool", "content": None}, "here, message 3: expected text, found nothing"),
        ({"role": "tool", "content": float("inf")}, "here, message 3: a value cannot be written"),
    ],
)
def test_wrong_replies(replied, complaint):
    called = {"role": "assistant", "tool_calls": [call("a", "1")]}
    assert complain([ASKED, called, replied, ANSWERED]).startswith(complaint)


@pytest.mark.parametrize(
    ("roles", "number", "complaint"),
    [
        ("tool", 1, "expected role 'system' or 'user', found 'observation'"),
        ("user tool", 2, "expected role 'assistant', found 'observation'"),
        ("user assistant tool user", 4, "expected role 'assistant' or 'observation', found 'user'"),
        ("system system user", 2, "expected role 'user', found 'system'"),
    ],
)
def test_order(roles, number, complaint):
    messages = [{"role": role, "content": "x"} for role in roles.split()]
    assert complain([*messages, ANSWERED]) == f"here, message {number}: {complaint}"
    assert len(read(messages, strict=False)) == len(messages)


def test_last_is_an_answer():
    asked = [ASKED, ANSWERED, {"role": "observation", "content": "x"}]
    assert complain(asked) == "here: expected an answer of the assistant as the last message"
    # A call that nobody has answered yet can be learnt.
    step = {"role": "tool", "name": "get_weather", "parameters": {"city": "北京"}}
    assert read([ASKED, step])[-1] == CALL


@pytest.mark.parametrize(
    ("wish", "learn"),
    [
        ({}, None),
        ({"loss": None}, None),
        ({"loss": True}, True),
        ({"loss": False}, False),
        ({"train": False}, False),
        ({"weight": 0}, False),
        ({"weight": 1.0}, True),
        ({"loss": True, "weight": 1, "train": None}, True),
        ({"loss": False, "weight": 0}, False),
    ],
)
def test_what_is_learnt(wish, learn):
    assert read([ASKED, ANSWERED | wish])[-1] == Message("assistant", ANSWER.content, learn=learn)
    step = {"role": "tool", "name": "f", "parameters": {}, "observation": "x"} | wish
    assert [m.learn for m in read([ASKED, step, ANSWERED])] == [None, learn, None, None]


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ({"weight": 0.5}, "expected 'weight' to be 0 or 1, found the number 0.5"),
        ({"loss": "false"}, "expected 'loss' to be true or false, found 'false'"),
        ({"train": []}, "expected 'train' to be true or false, found an empty list"),
        ({"loss": True, "weight": 0}, "'loss' and 'weight' contradict each other"),
        ({"train": False, "weight": 1}, "'train' and 'weight' contradict each other"),
    ],
)
def test_wrong_wishes(wish, complaint):
    assert complain([ASKED, ANSWERED | wish]) == f"here, message 2: {complaint}"


def test_what_is_not_used_is_named():
    messages = [
        {**ASKED, "name": "Li", "loss": True, "id": " ", "tags": [], "value": "x"},
        {**ANSWERED, "reasoning_content": "hm", "id": 0, "loss": True},
        {
            "role": "tool",
            "name": "f",
            "parameters": {},
            "observation": "y",
            "content": "y",
            "at": 1,
        },
        {"from": "gpt", "value": "x", "content": "z"},
    ]
    unused = set()
    read_messages(messages, "here", unused)
    assert unused == {
        "'name' of messages",
        "'loss' of user messages",
        "'value' of messages",
        "'reasoning_content' of messages",
        "'id' of messages",
        "'at' of messages",
        "'content' of messages",
    }


TOOLS = [{"name": "f", "description": "查询", "parameters": {"type": "object"}}]
SHOWN = json.dumps(TOOLS, indent=4, ensure_ascii=False)


@pytest.mark.parametrize("tools", [TOOLS, tuple(TOOLS), json.dumps(TOOLS), SHOWN])
def test_tools(tools):
    assert read_tools(tools, "here") == SHOWN
    system = {"role": "system", "content": "x", "tools": tools}
    assert read([system, ASKED, ANSWERED])[0] == Message("system", "x", tools=SHOWN)


@pytest.mark.parametrize("tools", [None, "", " ", [], "[]", {}, "null"])
def test_no_tools(tools):
    assert read_tools(tools, "here") == ""


@pytest.mark.parametrize(
    ("tools", "complaint"),
    [
        ("f(x)", "here: expected tools as JSON, found 'f(x)'"),
        ("3", "here: expected a list of tools, found the number 3"),
        (True, "here: expected a list of tools, found true"),
        ([{"x": float("-inf")}], "here: a value cannot be written as JSON (Out of range"),
        (["\ud83d"], "here: expected text, found half a surrogate pair"),
        ('[{"name": "f", "name": "g"}]', "here: key 'name' occurs twice in tools"),
        ([{"name": "f"}, {"name": "g"}, {"name": "f"}], "here: two tools have the name 'f'"),
        (
            [{"type": "function", "function": {"name": "f"}}, {"name": "f"}],
            "here: two tools have the name 'f'",
        ),
    ],
)
def test_wrong_tools(tools, complaint):
    with pytest.raises(BadRecord, match=f"^{re.escape(complaint)}"):
        read_tools(tools, "here")


STANDARD = (
    "Answer the following questions as best as you can. You have access to the following tools:"
)


@pytest.mark.parametrize(
    ("own", "text", "tools", "expected"),
    [
        (None, "", "", None),
        (None, " \n", "", None),
        (None, " s ", "", Message("system", " s ")),
        (None, "", SHOWN, Message("system", STANDARD, tools=SHOWN)),
        (None, " ", SHOWN, Message("system", STANDARD, tools=SHOWN)),
        (None, "s", SHOWN, Message("system", "s", tools=SHOWN)),
        (Message("system", "\t"), "", "", None),
        (Message("system", "s"), "", SHOWN, Message("system", "s", tools=SHOWN)),
        (Message("system", "s"), "s", "", Message("system", "s")),
        (Message("system", " "), "s", "", Message("system", "s")),
        (Message("system", "", tools=SHOWN), "", SHOWN, Message("system", "", tools=SHOWN)),
        (Message("system", "", tools=SHOWN), "s", "", Message("system", "s", tools=SHOWN)),
    ],
)
def test_system_message(own, text, tools, expected):
    turns = [Message("user", "x"), Message("assistant", "y")]
    head = [] if own is None else [own]
    assert with_system(head + turns, text, tools) == ([expected] if expected else []) + turns


@pytest.mark.parametrize(("text", "tools", "what"), [("t", "", "words"), ("s", "[1]", "tools")])
def test_two_system_messages(text, tools, what):
    messages = [Message("system", "s", tools=SHOWN), Message("user", "x")]
    message = f"^the system message has other {what} than stand beside it; leave one out$"
    with pytest.raises(BadRecord, match=message):
        with_system(messages, text, tools)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"\xff\x00", "2 bytes that are no text"),
        (datetime.date(2024, 1, 1), "a value of type date"),
        ((1, 2), "a list of 2"),
        (Decimal("1.5"), "the number 1.5"),
        (2.5, "the number 2.5"),
    ],
)
def test_wrong_values_are_described(value, shown):
    assert describe(value) == shown
