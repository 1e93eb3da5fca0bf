"""What models are told of tools, and how calls are written."""

import json

import pytest

from ptune.base.folder import Generation
from ptune.data.messages import Message, read_messages, read_tools, with_system
from ptune.data.prompt import WHOLE, Conversation, refusal, render
from ptune.data.tool_forms import describe_for_glm4, tool_form, tool_names

WEATHER = {"name": "get_weather", "description": "天气", "parameters": {"type": "object"}}
WRAPPED = {"type": "function", "function": WEATHER}
CALL = {
    "role": "assistant",
    "tool_calls": [{"function": {"name": "f", "arguments": '{"a": "北"}'}}],
}
HEAD = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)
FUNCTION = (
    '\n\n## get_weather\n\n{\n    "name": "get_weather",\n    "description": "天气",\n'
    '    "parameters": {\n        "type": "object"\n    }\n}\n'
    "在调用上述函数时，请使用 Json 格式表示调用的参数。"
)


@pytest.mark.parametrize("tools", [[WRAPPED], [WEATHER], WRAPPED])
def test_functions_of_glm4(tools):
    assert describe_for_glm4(read_tools(tools, "tools")) == HEAD + FUNCTION


@pytest.mark.parametrize(
    ("kind", "length"), [("python", 200), ("simple_browser", 482), ("cogview", 217)]
)
def test_tools_that_glm4_knows(kind, length):
    told = describe_for_glm4(json.dumps([{"type": kind}, WRAPPED]))
    assert told.startswith(f"{HEAD}\n\n## {kind}\n\n") and told.endswith(FUNCTION)
    own = told.removeprefix(f"{HEAD}\n\n## {kind}\n\n").removesuffix(FUNCTION)
    assert f"`{kind}`" in own and len(own) == length


def test_names():
    tools = json.dumps([WRAPPED, {"name": "f"}, {"type": "python"}, "g", {"x": 1}])
    assert tool_names(tools) == {"get_weather", "f", "python"}
    assert tool_names("") == frozenset()


@pytest.mark.parametrize(
    ("generation", "content"),
    [
        (Generation.CHATGLM3, "```python\ntool_call(a='北')\n```"),
        (None, "```python\ntool_call(a='北')\n```"),
        (Generation.GLM4, '{"a": "北"}'),
    ],
)
def test_calls(generation, content):
    asked = [{"role": "user", "content": "?"}, CALL]
    (_, call) = read_messages(asked, "here", set(), form=tool_form(generation))
    assert call == Message("assistant", content, "f")


def test_tools_without_an_instruction():
    said, tools = [Message("user", "?")], read_tools([WRAPPED], "tools")
    third = with_system(said, "", tools, tool_form(Generation.CHATGLM3))
    fourth = with_system(said, "", tools, tool_form(Generation.GLM4))
    assert third[0].content.startswith("Answer the following questions") and third[0].tools == tools
    assert fourth == [Message("system", "", tools=tools), *said]


class TestPromptOfGlm4:
    @pytest.mark.parametrize("instruction", ["", "  ", "简短"])
    def test_tools_stand_in_a_system_message_of_their_own(self, toy_tokenizer, instruction):
        tokenizer = toy_tokenizer(4)
        tools = read_tools([WRAPPED], "tools")
        messages = (Message("system", instruction, tools=tools), Message("user", "你好"))
        found = render(tokenizer, Generation.GLM4, Conversation(messages), WHOLE, trace=True)
        own = f"<|system|>\n{instruction}" if instruction.strip() else ""
        assert tokenizer.decode(found.input_ids) == (
            f"[gMASK]<sop><|system|>\n{HEAD}{FUNCTION}{own}<|user|>\n你好<|assistant|>"
        )
        user = found.input_ids.index(tokenizer.get_command("<|user|>"))
        assert found.owners[:3] == [None, None, 0]
        assert set(found.owners[2:user]) == {0} and set(found.owners[user:-1]) == {1}

    def test_what_is_learnt(self, toy_tokenizer):
        """Every answer without its role, and the role behind it; `<|user|>` at the end."""
        tokenizer = toy_tokenizer(4)
        messages = (
            Message("user", "天气"),
            Message("assistant", '{"city": "北京"}', "get_weather"),
            Message("observation", "晴"),
        )
        conversation = Conversation(messages, Message("assistant", "今天晴。"))
        example = render(tokenizer, Generation.GLM4, conversation, WHOLE)
        labels = [label for label in example.labels if label >= 0]
        assert tokenizer.decode(labels) == (
            'get_weather\n{"city": "北京"}<|observation|>\n今天晴。<|user|>'
        )
        assert tokenizer.decode(example.input_ids) == (
            "[gMASK]<sop><|user|>\n天气<|assistant|>get_weather\n"
            '{"city": "北京"}<|observation|>\n晴<|assistant|>\n今天晴。<|user|>'
        )
        for token, label in zip(example.input_ids, example.labels, strict=True):
            assert label in (token, -100)

    @pytest.mark.parametrize("tool", ["find", {"type": "function"}, {"name": ""}, 5])
    def test_a_tool_without_a_name(self, tool):
        messages = (Message("system", "", tools=json.dumps([tool])), Message("user", "?"))
        reason = refusal(Generation.GLM4, Conversation(messages))
        assert reason == (
            f"tool {json.dumps(tool)} has no name, by which GLM-4 knows it; give it a 'name'"
        )
        assert refusal(Generation.CHATGLM3, Conversation(messages)) == ""
