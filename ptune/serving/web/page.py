"""The page: Gradio's components, and what happens when they are used."""

from __future__ import annotations

import html
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ptune.config.shared_settings import TEMPERATURE_RANGE
from ptune.errors import PTuneError
from ptune.generation.sampling import TOP_K, Sampling
from ptune.serving.answers import Answers
from ptune.serving.web.side_by_side import Side, answer_sides
from ptune.serving.web.texts import CHINESE, ENGLISH, notice

_TOP_P, _TEMPERATURE = 0.7, 0.95
_MOST_TOP_K = 200
TEXTS = gr.I18n(**{"en": ENGLISH, "zh-CN": CHINESE, "zh-TW": CHINESE})  # those Gradio knows
# The theme's own come from another server.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
# A chat's value: what was said, as messages of a `role` and a `content`.
Chat = list[dict[str, Any]]


@dataclass(frozen=True)
class _Parts:
    """The components that handlers read and change."""

    prefix: gr.Dropdown
    compare: gr.Checkbox
    tuned: gr.Chatbot
    bare: gr.Chatbot
    question: gr.Textbox
    ask: gr.Button
    stop: gr.Button
    retry: gr.Button
    clear: gr.Button
    examples: gr.Dataset
    context: gr.Textbox
    sampling: list[gr.Slider]
    busy: gr.State


class Page:
    """The chat page of a server.

    Args:
        answers: of the server.
        default: the prefix that is chosen at first.
        max_new_tokens: of an answer, at first.
        system: instruction in front of every conversation.
    """

    def __init__(self, answers: Answers, default: str, max_new_tokens: int, system: str) -> None:
        self._answers = answers
        self._default = default
        self._max_new_tokens = max_new_tokens
        self._system = system

    def build(self) -> gr.Blocks:
        """Lay the page out, and connect it."""
        blocks = gr.Blocks(title="ptune", analytics_enabled=False, fill_height=True)
        with blocks:
            parts = self._lay_out()
            self._connect(blocks, parts)
        # Each answer is a request of its own to the engine, which has the slots and the queue.
        blocks.queue(default_concurrency_limit=None)
        return blocks

    def _lay_out(self) -> _Parts:
        names = self._answers.store.names
        has_prefix = self._default != self._answers.store.bare
        with gr.Row(equal_height=True):
            prefix = gr.Dropdown(
                names, value=self._default, label=_say("prefix"), scale=2, elem_id="prefix"
            )
            compare = gr.Checkbox(True, label=_say("compare"), scale=1, elem_id="compare")
        with gr.Row(scale=1):
            tuned = _chat(self._default, "tuned")
            bare = _chat(_say("bare"), "bare", visible=has_prefix)
        examples = gr.Dataset(
            components=["textbox", "textbox"],
            samples=[],
            label=_say("examples"),
            layout="gallery",
            visible=False,
            elem_id="examples",
        )
        question = gr.Textbox(
            label=_say("question"), lines=1, max_lines=8, autofocus=True, elem_id="question"
        )
        with gr.Row():
            ask = gr.Button(_say("ask"), variant="primary", elem_id="ask")
            stop = gr.Button(_say("stop"), variant="stop", interactive=False, elem_id="stop")
            retry = gr.Button(_say("retry"), elem_id="retry")
            clear = gr.Button(_say("clear"), elem_id="clear")
        with gr.Accordion(_say("about"), open=False, elem_id="about"):
            context = gr.Textbox(
                show_label=False, info=_say("about_info"), lines=4, max_lines=12, elem_id="context"
            )
        with gr.Accordion(_say("answers"), open=False, elem_id="sampling"), gr.Row():
            sampling = self._sliders()
        return _Parts(
            *(prefix, compare, tuned, bare, question, ask, stop, retry, clear),
            *(examples, context, sampling, gr.State(False)),
        )

    def _sliders(self) -> list[gr.Slider]:
        most = self._answers.context // 2
        return [
            gr.Slider(
                *(1, most, min(self._max_new_tokens, most)),
                step=1,
                label=_say("max_new_tokens"),
                elem_id="max_new_tokens",
            ),
            gr.Slider(
                *(0, 2, _TEMPERATURE),
                step=0.05,
                label=_say("temperature"),
                info=_say("temperature_info"),
                elem_id="temperature",
            ),
            gr.Slider(0, 1, _TOP_P, step=0.01, label=_say("top_p"), elem_id="top_p"),
            gr.Slider(
                *(0, _MOST_TOP_K, TOP_K),
                step=1,
                label=_say("top_k"),
                info=_say("top_k_info"),
                elem_id="top_k",
            ),
        ]

    def _connect(self, blocks: gr.Blocks, parts: _Parts) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        chats = [parts.tuned, parts.bare]
        buttons = [parts.busy, parts.ask, parts.stop]
        blocks.load(self._names, None, parts.prefix, **private)
        parts.prefix.focus(self._names, None, parts.prefix, **private)
        for event in (blocks.load, parts.prefix.change):
            event(self._examples, parts.prefix, parts.examples, **private)
        for changed in (parts.prefix.change, parts.compare.change):
            changed(self._headings, [parts.prefix, parts.compare], chats, **private)
        parts.examples.click(
            _take_example, parts.examples, [parts.question, parts.context], **private
        )
        inputs = [parts.prefix, parts.compare, *chats, parts.context, *parts.sampling]
        begun = [
            gr.on(
                [parts.ask.click, parts.question.submit],
                _begin,
                [parts.busy, parts.compare, parts.question, *chats],
                [parts.question, *chats, *buttons],
                **private,
            ),
            parts.retry.click(
                _begin_again,
                [parts.busy, parts.question, *chats],
                [parts.question, *chats, *buttons],
                **private,
            ),
        ]
        answering = []
        for event in begun:
            answered = event.success(self._answer, inputs, chats, **private)
            answered.then(_end, None, buttons, **private)
            answering.append(answered)
        parts.stop.click(_end, None, buttons, cancels=answering, **private)
        parts.clear.click(_clear, None, [*chats, *buttons], cancels=answering, **private)

    def _names(self) -> Any:
        return gr.Dropdown(choices=self._answers.store.names)

    def _headings(self, name: str, compare: bool) -> tuple[Any, Any]:
        beside = compare and name != self._answers.store.bare
        return gr.Chatbot(label=name), gr.Chatbot(visible=beside)

    def _examples(self, name: str) -> Any:
        found = self._answers.store.questions(name)
        samples = [[said.question, said.context] for said in found]
        labels = [said.question for said in found]
        return gr.Dataset(samples=samples, sample_labels=labels, visible=bool(samples))

    async def _answer(
        self,
        name: str,
        compare: bool,
        tuned: Chat,
        bare: Chat,
        context: str,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        request: gr.Request,
    ) -> AsyncIterator[tuple[Any, Any]]:
        """Answer what stands at the end of the chats."""
        language = request.headers.get("accept-language", "")
        sampling = Sampling(
            int(max_new_tokens),
            temperature > 0,
            max(top_p, 0.01),
            max(temperature, TEMPERATURE_RANGE.least or 0),
            int(top_k),
        )
        chats = [tuned]
        sides = [Side(name, _turns(tuned))]
        if compare and name != self._answers.store.bare:
            chats.append(bare)
            sides.append(Side(self._answers.store.bare, _turns(bare)))
        question, context = _text(tuned[-1]), context or ""  # an untouched field is None
        yield tuned, bare
        answering = answer_sides(self._answers, sides, question, context, sampling, self._system)
        told = False
        try:
            async for _ in answering:
                if not told:
                    told = True
                    _tell_what_is_cut(sides, language)
                shown = [_with_answer(*pair) for pair in zip(chats, sides, strict=True)]
                yield shown[0], shown[1] if len(shown) > 1 else gr.skip()
        except PTuneError as error:
            gr.Warning(html.escape(str(error)), title=notice("error", language))
            return
        if not all(side.said for side in sides):
            gr.Info(notice("empty", language))


def _say(key: str) -> Any:
    """A text in the language of the browser, which puts it in."""
    return TEXTS(f"ptune_{key}")


def _chat(label: Any, name: str, visible: bool = True) -> gr.Chatbot:
    return gr.Chatbot(
        label=label,
        elem_id=name,
        visible=visible,
        height="50vh",
        min_width=280,
        # What a model says is shown as it is: prompts like 类型#裙*颜色#白 are no markup.
        render_markdown=False,
        buttons=["copy"],
        feedback_options=None,
    )


def _begin(
    busy: bool, compare: bool, question: str, tuned: Chat, bare: Chat, request: gr.Request
) -> tuple[Any, ...]:
    """Put the question at the end of the chats."""
    if busy or not (question or "").strip():
        return _refuse(busy, request)
    asked = {"role": "user", "content": question.strip()}
    if len(bare) != len(tuned):  # it was not asked all the time
        bare = []
    return "", [*tuned, asked], [*bare, asked] if compare else bare, *_state(True)


def _begin_again(
    busy: bool, question: str, tuned: Chat, bare: Chat, request: gr.Request
) -> tuple[Any, ...]:
    """Take the last answers off the chats."""
    tuned, bare = _without_answer(tuned), _without_answer(bare)
    if busy or not tuned:
        return _refuse(busy, request)
    return question, tuned, bare, *_state(True)


def _refuse(busy: bool, request: gr.Request) -> tuple[Any, ...]:
    if busy:
        raise gr.Error(notice("busy", request.headers.get("accept-language", "")))
    raise gr.Error(visible=False, print_exception=False)  # there is nothing to answer


def _end() -> tuple[Any, ...]:
    return _state(False)


def _state(busy: bool) -> tuple[Any, ...]:
    return busy, gr.Button(interactive=not busy), gr.Button(interactive=busy)


def _clear() -> tuple[Any, ...]:
    return [], [], *_state(False)


def _take_example(sample: Sequence[str]) -> tuple[str, str]:
    question, context = sample
    return question, context


def _text(message: dict[str, Any]) -> str:
    """The text of a message, which comes back from the page in parts."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def _turns(chat: Chat) -> list[tuple[str, str]]:
    """Questions that were answered; the last message, a question, is not."""
    texts = [(message["role"], _text(message)) for message in chat]
    return [
        (question, answer)
        for (asks, question), (says, answer) in itertools.pairwise(texts)
        if asks == "user" and says == "assistant" and answer.strip()
    ]


def _without_answer(chat: Chat) -> Chat:
    """Up to the last question; nothing of a chat without one."""
    last = max((i for i, said in enumerate(chat) if said["role"] == "user"), default=-1)
    return chat[: last + 1]


def _with_answer(chat: Chat, side: Side) -> Chat:
    return [*chat, {"role": "assistant", "content": side.said}] if side.said else chat


def _tell_what_is_cut(sides: Sequence[Side], language: str) -> None:
    examples = [side.example for side in sides if side.example is not None]
    for example in examples[:1]:
        if example.turns_dropped:
            gr.Info(notice("turns_dropped", language, example.turns_dropped))
        if (cut := example.context_cut) is not None:
            gr.Info(notice("context_cut", language, cut.kept_characters, cut.characters))
        if example.prompt_cut:
            gr.Info(notice("prompt_cut", language))
