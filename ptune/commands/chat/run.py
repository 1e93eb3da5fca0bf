"""Loads a model, and answers until the user leaves or the input ends."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator

from ptune.base.context import context_length
from ptune.checkpoint.base import find_base, resolve_base
from ptune.checkpoint.folder import find_whole_checkpoint
from ptune.checkpoint.load import load_model
from ptune.commands.chat.screens import Pipes, Screen, Terminal
from ptune.commands.chat.slash_commands import run_command
from ptune.config.settings import ChatSettings
from ptune.data.files import read_whole_text
from ptune.data.tokenizer import build_tokenizer
from ptune.device.full_memory import memory_advice
from ptune.device.precision import choose_device, choose_dtype
from ptune.errors import ConfigError, PTuneError
from ptune.generation.chat_session import ChatSession
from ptune.generation.sampling import Sampling
from ptune.generation.streaming import max_prompt_length
from ptune.quantization.layers import precision_of


@contextlib.contextmanager
def _interrupt_sets(stop: threading.Event) -> Iterator[None]:
    """Let Ctrl-C set a flag inside the block, where an exception could leave a step half done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _answer(session: ChatSession, prompt: str, screen: Screen, once: bool = False) -> None:
    stop = threading.Event()
    said = False
    with _interrupt_sets(stop), contextlib.closing(session.reply(prompt, stop)) as pieces:
        for notice in session.notices:
            screen.note(notice)
        try:
            shorter = "" if once else "/clear, or start with "
            with memory_advice(f"{shorter}a smaller --max-new-tokens"):
                for piece in pieces:
                    screen.write(piece)
                    said = True
        except PTuneError:
            if said or not once:  # a single question fails without a line of output
                screen.finish(stopped=False)
            raise
    screen.finish(stop.is_set())
    if not said and not stop.is_set():
        screen.note("the answer is empty" + ("" if once else ", and the turn is not kept"))


def _converse(session: ChatSession, screen: Screen) -> None:
    while True:
        try:
            line = screen.read()
            if line.startswith("/"):
                screen.note(run_command(session, line))
            elif line.strip():
                _answer(session, line.strip(), screen)
        except EOFError:
            return
        except PTuneError as error:
            screen.complain(str(error))
        except KeyboardInterrupt:  # between two steps of a terminal: it ends neither
            if not screen.interactive:
                raise


def _greeting(session: ChatSession, name: str) -> str:
    beside = session.trained or "no prefix"
    return f"{name}, {beside}, {precision_of(session.model)}; /help for commands"


def run_chat(settings: ChatSettings) -> None:
    """Answer one question, or hold a conversation until the user leaves or the input ends.

    Args:
        settings: model, sampling, instruction, and the question if there is only one.

    Raises:
        PTuneError: the model cannot be loaded, or there is nobody to talk with.
    """
    from rich.console import Console

    for place, stream in (("stdin", sys.stdin), ("stdout", sys.stdout)):
        if stream is None and not (settings.question and stream is sys.stdin):
            raise ConfigError(f"{place} is closed, and chat needs it; start without `<&-` or `>&-`")
    notices: list[str] = []
    text = read_whole_text(settings.context, notices) if settings.context else ""
    checkpoint, passed_over = settings.checkpoint, None
    if checkpoint is not None:
        checkpoint, passed_over = find_whole_checkpoint(checkpoint)
    name = resolve_base(settings.model, checkpoint)
    with Console(stderr=True).status(f"Loading {name}"):
        # The weights come later: what cannot work is said before a long download.
        base = find_base(name, checkpoint, settings.prompt_format, weights=False)
        choose_dtype(settings.dtype, choose_device(settings.device))
        if (context := context_length(base.config)) is not None:
            max_prompt_length(context, settings.max_new_tokens)
        model = load_model(
            name,
            checkpoint,
            settings.dtype,
            settings.device,
            settings.quantization_bit,
            settings.quantization_backend,
            base.generation.value,
        )
    sampling = Sampling(
        settings.max_new_tokens,
        settings.do_sample,
        settings.top_p,
        settings.temperature,
        seed=settings.seed if settings.seed is not None else secrets.randbits(32),
    )
    tokenizer = build_tokenizer(base)
    session = ChatSession(model, tokenizer, base.generation, sampling, settings.system, text)
    once = settings.question is not None
    interactive = not once and sys.stdin.isatty() and sys.stdout.isatty()
    screen: Screen = Terminal() if interactive else Pipes(once)
    for notice in filter(None, [passed_over, *notices]):
        screen.note(f"warning: {notice}")
    try:
        if settings.question is not None:
            _answer(session, settings.question.strip(), screen, once)
            return
        screen.note(_greeting(session, name))
        _converse(session, screen)
    except BrokenPipeError:
        # The reader has seen enough; without this, Python complains when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
