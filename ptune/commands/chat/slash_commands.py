"""What a line that begins with `/` does to a conversation."""

from __future__ import annotations

import os
from pathlib import Path

from ptune.data.files import read_whole_text
from ptune.errors import ConfigError
from ptune.generation.chat_session import ChatSession

_HELP = """\
/clear         forget the conversation
/prefix on|off answer with the trained prefix or LoRA, or as the bare model
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
    if session.trained is None:
        return "there is no prefix: answers are the bare model's"
    if session.prefix_on:
        return f"the {session.trained} is on"
    return f"the {session.trained} is off: answers are the bare model's"


def _switch_context(session: ChatSession, argument: str) -> str:
    notices: list[str] = []
    if argument == "off":
        session.set_context("")
    elif argument:
        session.set_context(read_whole_text(Path(os.path.expanduser(argument)), notices))
    about = f"a text of {len(session.context):,} characters" if session.context else "no text"
    return "\n".join([*notices, f"questions are about {about}"])


def _save(session: ChatSession, argument: str) -> str:
    if not argument:
        raise ConfigError("/save needs a file; use e.g. /save chat.jsonl")
    file = Path(os.path.expanduser(argument))
    session.save(file)
    return f"saved to {file.absolute()}"
