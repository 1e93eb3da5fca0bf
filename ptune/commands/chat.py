"""`ptune chat`: a conversation, in a terminal or through pipes, or the answer to one question."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ptune.base.context import context_length
from ptune.checkpoint.base import find_base, resolve_base
from ptune.checkpoint.folder import find_whole_checkpoint
from ptune.checkpoint.load import load_model
from ptune.config.settings import ChatSettings
from ptune.data.files import read_context
from ptune.data.tokenizer import build_tokenizer
from ptune.device.full_memory import memory_advice
from ptune.device.precision import choose_device, choose_dtype
from ptune.errors import ConfigError, PTuneError
from ptune.generation.chat_session import ChatSession
from ptune.generation.sampling import Sampling
from ptune.generation.streaming import max_prompt_length
from ptune.quantization.layers import precision_of

if TYPE_CHECKING:
    from prompt_toolkit.history import History

# A model may say anything; what it says must not steer the terminal.
_CONTROL_CHARACTERS = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")})

_HELP = """\
/clear         forget the conversation
/prefix on|off answer with the trained prefix, or as the bare model
/context FILE  ask about the text in a file, /context off about none
/history       show the conversation
/save FILE     write it as a line of JSON that `ptune train` reads
/help          show this
/exit          leave, as Ctrl-D does
Ctrl-C stops an answer; Alt-Enter begins a new line; a blank before / makes it a question."""


def run_command(session: ChatSession, line: str) -> str:
    """Do what a line that begins with `/` asks for.

    Returns:
        What to tell the user.

    Raises:
        EOFError: the user wants to leave.
        PTuneError: the command cannot be done.
    """
    name, _, argument = line.strip().partition(" ")
    argument = argument.strip()
    if name == "/exit":
        raise EOFError
    if name == "/help":
        return _HELP
    if name == "/clear":
        session.clear()
        return "the conversation is forgotten"
    if name == "/history":
        turns = [f"> {query}\n{answer}" for query, answer in session.history]
        return "\n\n".join(turns) or "nothing was said yet"
    if name == "/prefix":
        return _switch_prefix(session, argument)
    if name == "/context":
        return _switch_context(session, argument)
    if name == "/save":
        return _save(session, argument)
    raise ConfigError(f"{name} is no command; /help lists them")


def _switch_prefix(session: ChatSession, argument: str) -> str:
    if argument not in ("", "on", "off"):
        raise ConfigError(f"/prefix {argument} is not known; use /prefix on or /prefix off")
    if argument:
        session.set_prefix(argument == "on")
    if not session.prefix_length:
        return "there is no prefix: answers are the bare model's"
    if session.prefix_on:
        return f"the prefix of {session.prefix_length} tokens is on"
    return f"the prefix of {session.prefix_length} tokens is off: answers are the bare model's"


def _switch_context(session: ChatSession, argument: str) -> str:
    notices: list[str] = []
    if argument == "off":
        session.set_context("")
    elif argument:
        session.set_context(read_context(Path(os.path.expanduser(argument)), notices))
    about = f"a text of {len(session.context):,} characters" if session.context else "no text"
    return "\n".join([*notices, f"questions are about {about}"])


def _save(session: ChatSession, argument: str) -> str:
    if not argument:
        raise ConfigError("/save needs a file; use e.g. /save chat.jsonl")
    file = Path(os.path.expanduser(argument))
    session.save(file)
    return f"saved to {file.absolute()}"


class _Screen(Protocol):
    """Where a conversation is held."""

    interactive: bool

    def read(self) -> str:
        """The next line; EOFError when there is none."""

    def write(self, piece: str) -> None:
        """Show a piece of an answer."""

    def finish(self, stopped: bool) -> None:
        """End an answer."""

    def note(self, text: str) -> None:
        """Show what is no answer."""

    def complain(self, text: str) -> None:
        """Show an error."""


class _Terminal:
    """Line editing, history and colours."""

    interactive = True

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
        from rich.console import Console

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        self._console = Console(highlight=False)
        self._lines: PromptSession[str] = PromptSession(history=_line_history(), key_bindings=keys)

    def read(self) -> str:
        interrupted = False
        while True:
            try:
                return self._lines.prompt([("bold ansigreen", "> ")])
            except KeyboardInterrupt:
                if interrupted:
                    self.note("/exit or Ctrl-D leaves")
                interrupted = True

    def write(self, piece: str) -> None:
        self._console.out(piece.translate(_CONTROL_CHARACTERS), end="")
        self._console.file.flush()

    def finish(self, stopped: bool) -> None:
        self._console.out("")
        if stopped:
            self.note("(stopped)")

    def note(self, text: str) -> None:
        self._print(text, "dim")

    def complain(self, text: str) -> None:
        self._print(text, "red")

    def _print(self, text: str, style: str) -> None:
        from rich.text import Text  # not markup: a path may hold brackets

        self._console.print(Text(text.translate(_CONTROL_CHARACTERS), style), soft_wrap=True)


class _Pipes:
    """Questions line by line from stdin, answers and nothing else to stdout.

    Args:
        once: the first answer is the only one; stopping it leaves.
    """

    interactive = False

    def __init__(self, once: bool = False) -> None:
        for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors=errors)
        self._stopped_before = once
        self._unshown = _CONTROL_CHARACTERS if sys.stdout.isatty() else {}

    def read(self) -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removeprefix("\ufeff").removesuffix("\n")

    def write(self, piece: str) -> None:
        print(piece.translate(self._unshown), end="", flush=True)

    def finish(self, stopped: bool) -> None:
        print(flush=True)
        if stopped and self._stopped_before:
            raise KeyboardInterrupt  # else a long list of questions could not be left
        if stopped:
            self.note("(stopped; once more leaves)")
        self._stopped_before = stopped

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def complain(self, text: str) -> None:
        self.note(f"error: {text}")


def _line_history() -> History:
    """What was typed in earlier runs; a place that cannot be written is no reason to fail."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class TolerantHistory(FileHistory):
        def load_history_strings(self) -> list[str]:
            try:
                return list(super().load_history_strings())
            except OSError:
                return []

        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError, UnicodeError):
                super().store_string(string)

    places = [os.environ.get("XDG_STATE_HOME"), os.environ.get("LOCALAPPDATA")]
    try:
        state = Path(next(filter(None, places), None) or Path.home() / ".local" / "state")
        folder = state / "ptune"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return InMemoryHistory()
    return TolerantHistory(folder / "chat_history")


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


def _answer(session: ChatSession, prompt: str, screen: _Screen, once: bool = False) -> None:
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


def _converse(session: ChatSession, screen: _Screen) -> None:
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
    length = session.prefix_length
    prefix = f"prefix of {length} tokens" if length else "no prefix"
    return f"{name}, {prefix}, {precision_of(session.model)}; /help for commands"


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
    text = read_context(settings.context, notices) if settings.context else ""
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
    screen: _Screen = _Terminal() if interactive else _Pipes(once)
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
