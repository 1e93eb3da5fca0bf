"""The page: Gradio's components, and what happens when they are used."""

from __future__ import annotations

import html
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ptune.config.shared_settings import TEMPERATURE_RANGE
from ptune.errors import PTuneError
from ptune.generation.sampling import TOP_K, Sampling
from ptune.serving.answers import Answers
from ptune.serving.options import Serving
from ptune.serving.web.side_by_side import Side, answer_sides
from ptune.serving.web.texts import CHINESE, ENGLISH, notice

_TOP_P, _TEMPERATURE = 0.7, 0.95
_MOST_TOP_K = 200
TEXTS = gr.I18n(**{"en": ENGLISH, "zh-CN": CHINESE, "zh-TW": CHINESE})  # those Gradio knows
# The theme's own come from another server.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
# More would not fit the size of a request; the browser takes no more.
_LONGEST_QUESTION, _LONGEST_CONTEXT = 20_000, 200_000  # characters
# Gradio's own bin forgets what is shown, not what was said.
CSS = "#tuned button[aria-label='Clear'], #bare button[aria-label='Clear'] { display: none }"


@dataclass(frozen=True)
class Turn:
    """A question and its answers, which stay on the server.

    Attributes:
        question: as it was asked.
        tuned: the answer with the prefix, so far.
        bare: that of the bare model, so far; None where it was not asked.
    """

    question: str
    tuned: str = ""
    bare: str | None = None


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
    turns: gr.State


class Page:
    """The chat page of a server.

    Args:
        answers: of the server.
        serving: how it answers.
    """

    def __init__(self, answers: Answers, serving: Serving) -> None:
        self._answers = answers
        self._serving = serving

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
        both = self._answers.worker.capacity > 1
        has_prefix = self._serving.default != self._answers.store.bare
        with gr.Row(equal_height=True):
            prefix = gr.Dropdown(
                names, value=self._serving.default, label=_say("prefix"), scale=2, elem_id="prefix"
            )
            compare = gr.Checkbox(both, label=_say("compare"), scale=1, elem_id="compare")
        with gr.Row(scale=1):
            tuned = _chat(self._serving.default, "tuned")
            bare = _chat(_say("bare"), "bare", visible=both and has_prefix)
        examples = gr.Dataset(
            components=["textbox", "textbox"],
            samples=[],
            label=_say("examples"),
            layout="gallery",
            visible=False,
            elem_id="examples",
        )
        question = gr.Textbox(
            label=_say("question"),
            lines=1,
            max_lines=8,
            max_length=_LONGEST_QUESTION,
            autofocus=True,
            elem_id="question",
        )
        with gr.Row():
            ask = gr.Button(_say("ask"), variant="primary", elem_id="ask")
            stop = gr.Button(_say("stop"), variant="stop", interactive=False, elem_id="stop")
            retry = gr.Button(_say("retry"), elem_id="retry")
            clear = gr.Button(_say("clear"), elem_id="clear")
        with gr.Accordion(_say("about"), open=False, elem_id="about"):
            context = gr.Textbox(
                show_label=False,
                info=_say("about_info"),
                lines=4,
                max_lines=12,
                max_length=_LONGEST_CONTEXT,
                elem_id="context",
            )
        with gr.Accordion(_say("answers"), open=False, elem_id="sampling"), gr.Row():
            sampling = self._sliders()
        return _Parts(
            *(prefix, compare, tuned, bare, question, ask, stop, retry, clear),
            *(examples, context, sampling, gr.State(False), gr.State([])),
        )

    def _sliders(self) -> list[gr.Slider]:
        most = self._answers.context // 2
        return [
            gr.Slider(
                *(1, most, min(self._serving.max_new_tokens, most)),
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
        taken = [parts.question, parts.context]
        parts.examples.click(_take_example, parts.examples, taken, **private)
        asked = [parts.question, parts.turns, *chats, *buttons]
        begun = [
            gr.on(
                [parts.ask.click, parts.question.submit],
                _begin,
                [parts.busy, parts.turns, parts.question],
                asked,
                **private,
            ),
            parts.retry.click(
                _begin_again, [parts.busy, parts.turns, parts.question], asked, **private
            ),
        ]
        inputs = [parts.prefix, parts.compare, parts.turns, parts.context, *parts.sampling]
        answering = []
        for event in begun:
            answered = event.success(self._answer, inputs, [parts.turns, *chats], **private)
            answered.then(_end, None, buttons, **private)
            answering.append(answered)
        parts.stop.click(_end, None, buttons, cancels=answering, **private)
        # In two steps: what an answer still had on its way to the page comes before the second.
        stopped = parts.clear.click(_end, None, buttons, cancels=answering, **private)
        stopped.then(_clear, None, [parts.turns, *chats], **private)

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
        turns: list[Turn],
        context: str | None,
        max_new_tokens: float | None,
        temperature: float | None,
        top_p: float | None,
        top_k: float | None,
        request: gr.Request,
    ) -> AsyncIterator[tuple[Any, ...]]:
        """Answer the last question."""
        language = request.headers.get("accept-language", "")
        *earlier, turn = turns
        tuned = Side(name, [(t.question, t.tuned) for t in earlier if t.tuned])
        bare = Side(self._answers.store.bare, [(t.question, t.bare) for t in earlier if t.bare])
        sides = [tuned, bare] if compare and name != bare.name else [tuned]
        turn = Turn(turn.question, bare="" if bare in sides else None)
        yield [*earlier, turn], *_shown([*earlier, turn])
        try:
            sampling = _sampling(max_new_tokens, temperature, top_p, top_k)
            asked = (turn.question, context or "", sampling, self._serving.system)
            told = False
            async for _ in answer_sides(self._answers, sides, *asked):
                if not told:
                    told = True
                    _tell_what_is_cut(sides, language)
                said = Turn(turn.question, tuned.said, bare.said if bare in sides else None)
                yield [*earlier, said], *_shown([*earlier, said])
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
        # What is said is shown as it is: prompts like 类型#裙*颜色#白 are no markup.
        render_markdown=False,
        latex_delimiters=[],
        buttons=[],  # a copy would be of the escaped text
        feedback_options=None,
    )


def _shown(turns: Sequence[Turn]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """What both chats show; Gradio takes texts for HTML, so they are escaped."""

    def message(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": html.escape(text)}

    tuned, bare = [], []
    for turn in turns:
        tuned.append(message("user", turn.question))
        if turn.tuned:
            tuned.append(message("assistant", turn.tuned))
        if turn.bare is not None:
            bare.append(message("user", turn.question))
            if turn.bare:
                bare.append(message("assistant", turn.bare))
    return tuned, bare


def _begin(
    busy: bool, turns: list[Turn], question: str | None, request: gr.Request
) -> tuple[Any, ...]:
    """Put the question at the end of the chats."""
    question = (question or "").strip()
    _check(busy, bool(question), request)
    turns = [*turns, Turn(question)]
    return "", turns, *_shown(turns), *_state(True)


def _begin_again(
    busy: bool, turns: list[Turn], question: str | None, request: gr.Request
) -> tuple[Any, ...]:
    """Take the last answers off the chats."""
    _check(busy, bool(turns), request)
    turns = [*turns[:-1], Turn(turns[-1].question)]
    return question, turns, *_shown(turns), *_state(True)


def _check(busy: bool, something: bool, request: gr.Request) -> None:
    if busy:
        said = notice("busy", request.headers.get("accept-language", ""))
        raise gr.Error(said, print_exception=False)
    if not something:
        raise gr.Error(visible=False, print_exception=False)


def _end() -> tuple[Any, ...]:
    return _state(False)


def _state(busy: bool) -> tuple[Any, ...]:
    return busy, gr.Button(interactive=not busy), gr.Button(interactive=busy)


def _take_example(sample: Sequence[str]) -> tuple[str, str]:
    question, context = sample
    return question, context


def _clear() -> tuple[Any, ...]:
    return [], [], []


def _sampling(*sliders: float | None) -> Sampling:
    """From the sliders; one that was emptied counts as its least."""
    tokens, warm, nucleus, most = (slider or 0 for slider in sliders)
    least = TEMPERATURE_RANGE.least or 0
    return Sampling(max(int(tokens), 1), warm > 0, max(nucleus, 0.01), max(warm, least), int(most))


def _tell_what_is_cut(sides: Sequence[Side], language: str) -> None:
    examples = [side.example for side in sides if side.example is not None]
    for example in examples[:1]:
        if example.turns_dropped:
            gr.Info(notice("turns_dropped", language, example.turns_dropped))
        if (cut := example.context_cut) is not None:
            gr.Info(notice("context_cut", language, cut.kept_characters, cut.characters))
        if example.prompt_cut:
            gr.Info(notice("prompt_cut", language))
