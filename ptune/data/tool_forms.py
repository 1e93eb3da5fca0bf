"""How the generations that have roles write tools: what they are told of them, and calls.

ChatGLM3's form is that of THUDM/ChatGLM3 `finetune_demo`: descriptions as JSON behind an
instruction; a call as Python.  GLM-4's is that of the chat template beside the weights of
THUDM/glm-4-9b-chat, whose wording the model was trained with: a system message of its own; a call
as JSON.
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ptune.base.folder import Generation
from ptune.files.json_text import to_json

_GLM4_HEAD = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)
_GLM4_CALLING = "在调用上述函数时，请使用 Json 格式表示调用的参数。"
# Tools that the model knows without a description, by their type.
_GLM4_OWN = {
    "python": (
        "当你向 `python` 发送包含 Python 代码的消息时，"
        "该代码将会在一个有状态的 Jupyter notebook 环境中执行。\n"
        "`python` 返回代码执行的输出，或在执行 60 秒后返回超时。\n"
        "`/mnt/data` 将会持久化存储你的文件。在此会话中，`python` 无法访问互联网。"
        "不要使用 `python` 进行任何网络请求或者在线 API 调用，"
        "这些在线内容的访问将不会成功。"
    ),
    "simple_browser": (
        "你可以使用 `simple_browser` 工具。该工具支持以下函数：\n"
        "`search(query: str, recency_days: int)`：使用搜索引擎进行查询并显示结果，"
        "可以使用 `recency_days` 参数控制搜索内容的时效性。\n"
        "`mclick(ids: list[int])`：获取一系列指定 id 的页面内容。每次调用时，须选择3-10个页面。"
        "选择多个角度的页面，同时尽可能选择可信任的信息来源。考虑到部分页面是无法加载的，"
        "你也可以多打开一些可能有用的页面而不用担心内容过多。\n"
        "`open_url(url: str)`：打开指定的 URL。\n\n"
        "使用 `【{引用 id}†{引用文本}】` 来引用内容。\n\n"
        "操作步骤：1. 使用 `search` 来获得信息列表; 2. 使用 `mclick` 来获取指定 ID 页面的内容; "
        "3. 根据获得的内容进行回复。在回复中应当引用信息来源。\n"
        " 如果用户提供了 URL，也可以用 `open_url` 直接打开页面。\n"
        "如果初次搜索结果没有找到合适的信息，也可以再次使用 `search` 进行搜索。"
    ),
    "cogview": (
        "如果用户的请求中包含了对图像的描述，你可以使用 `cogview` 来生成图像并展示给用户。"
        "你需要向 `cogview` 发送图像描述，规则：\n"
        "- 发送给 `cogview` 的消息必须使用英语。用户的中文描述必须完全翻译为英语。\n"
        "- 应当尽可能详细地描述图像生成的需求，需求描述约 100 英文单词。\n"
        "- 保持用户原始描述的意图。不要虚构内容或者没见过的人物。\n"
        "- 如无特殊说明，所在地为中国，持有中国立场并遵循中国社会主义价值观。"
    ),
}


@dataclass(frozen=True)
class ToolForm:
    """What messages say of tools.

    Attributes:
        instruction: stands in front of tools that come without one; may be empty.
        write_call: the arguments of a call as the model writes them.
    """

    instruction: str
    write_call: Callable[[dict[str, Any]], str]


def _write_python(arguments: dict[str, Any]) -> str:
    """A call of `tool_call`, every value as a Python literal."""
    plain = {name: name.isidentifier() and not keyword.iskeyword(name) for name in arguments}
    written = [f"{name}={arguments[name]!r}" for name, is_plain in plain.items() if is_plain]
    # What is no name of Python's would end the call early, or begin another.
    if rest := {name: arguments[name] for name, is_plain in plain.items() if not is_plain}:
        written.append(f"**{rest!r}")
    return f"```python\ntool_call({', '.join(written)})\n```"


def _write_json(arguments: dict[str, Any]) -> str:
    return to_json(arguments)


CHATGLM3_FORM = ToolForm(
    # What its own fine-tuning says.
    "Answer the following questions as best as you can. You have access to the following tools:",
    _write_python,
)
_GLM4_FORM = ToolForm("", _write_json)


def tool_form(generation: Generation | None) -> ToolForm:
    """The form of a generation; ChatGLM3's where none is said, or one that has no tools."""
    return _GLM4_FORM if generation is Generation.GLM4 else CHATGLM3_FORM


def describe_for_glm4(tools: str) -> str:
    """What GLM-4 is told of tools.

    Args:
        tools: JSON, from `read_tools`; each of them as OpenAI has it, or its function alone.
    """
    text = _GLM4_HEAD
    for tool in _each(tools):
        if (kind := _own_kind(tool)) is not None:
            text += f"\n\n## {kind}\n\n{_GLM4_OWN[kind]}"
        else:
            function = _function(tool)
            described = to_json(function, indent=4)
            text += f"\n\n## {function['name']}\n\n{described}\n{_GLM4_CALLING}"
    return text


def unfit_for_glm4(tools: str) -> str | None:
    """The first tool that GLM-4 cannot be told of, as JSON: it has no name."""
    for tool in _each(tools):
        if _own_kind(tool) is None and not (_function(tool) and _function(tool).get("name")):
            return to_json(tool)
    return None


def tool_names(tools: str) -> frozenset[str]:
    """The names under which tools are called.

    Args:
        tools: JSON, from `read_tools`, or empty.
    """
    named = [_own_kind(tool) or _function(tool).get("name") for tool in _each(tools)]
    return frozenset(name for name in named if isinstance(name, str))


def _each(tools: str) -> list[Any]:
    found = json.loads(tools) if tools else []
    return found if isinstance(found, list) else [found]


def _own_kind(tool: Any) -> str | None:
    kind = tool.get("type") if isinstance(tool, dict) else None
    return kind if isinstance(kind, str) and kind in _GLM4_OWN else None


def _function(tool: Any) -> dict[str, Any]:
    """A tool's function, which OpenAI's form wraps; empty for what is none."""
    if isinstance(tool, dict):
        tool = tool.get("function", tool)
    return tool if isinstance(tool, dict) else {}
