"""Where a conversation is held: a terminal, or pipes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from prompt_toolkit.history import History

# A model may say anything; what it says must not steer the terminal.
_CONTROL_CHARACTERS = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")})


class Screen(Protocol):
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


class Terminal:
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
        """Ask for a line; Ctrl-C twice says how to leave."""
        interrupted = False
        while True:
            try:
                return self._lines.prompt([("bold ansigreen", "> ")])
            except KeyboardInterrupt:
                if interrupted:
                    self.note("/exit or Ctrl-D leaves")
                interrupted = True

    def write(self, piece: str) -> None:
        """Show a piece of an answer, less what would steer the terminal."""
        self._console.out(piece.translate(_CONTROL_CHARACTERS), end="")
        self._console.file.flush()

    def finish(self, stopped: bool) -> None:
        """End the line, and say so if it was stopped."""
        self._console.out("")
        if stopped:
            self.note("(stopped)")

    def note(self, text: str) -> None:
        """Show what is no answer, dimmed."""
        self._print(text, "dim")

    def complain(self, text: str) -> None:
        """Show an error, in red."""
        self._print(text, "red")

    def _print(self, text: str, style: str) -> None:
        from rich.text import Text  # not markup: a path may hold brackets

        self._console.print(Text(text.translate(_CONTROL_CHARACTERS), style), soft_wrap=True)


class Pipes:
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
        """The next line of stdin."""
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removeprefix("\ufeff").removesuffix("\n")

    def write(self, piece: str) -> None:
        """Print a piece of an answer."""
        print(piece.translate(self._unshown), end="", flush=True)

    def finish(self, stopped: bool) -> None:
        """End the line; stopped twice in a row leaves."""
        print(flush=True)
        if stopped and self._stopped_before:
            raise KeyboardInterrupt  # else a long list of questions could not be left
        if stopped:
            self.note("(stopped; once more leaves)")
        self._stopped_before = stopped

    def note(self, text: str) -> None:
        """Print to stderr, which holds no answers."""
        print(text, file=sys.stderr, flush=True)

    def complain(self, text: str) -> None:
        """Print an error to stderr."""
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
