"""How a setting is declared, and the checks that follow from its declaration for every command."""

from __future__ import annotations

import dataclasses
import os
import reprlib
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ptune.errors import ConfigError
from ptune.files.home import expand_home

_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxlist, _SHOWN.maxdict, _SHOWN.maxset = 2, 3, 3, 3
_SHOWN.maxstring = _SHOWN.maxother = 80
# Of Unicode's categories: Python hands on bytes that are not UTF-8 as halves of surrogate pairs.
_UNUSABLE = {"Cc": "a control character", "Cs": "a byte that is not UTF-8"}
_MOST_BITS = 512  # of a number that is shown; Python refuses to write very long ones


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that make sense; each bound is part of it or, as `above` and `below`, is not."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        """Whether a number is inside; so put, nan never is."""
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """For people."""
        if self.least is not None and self.most is not None:
            return f"{self.least:,} to {self.most:,}"
        bounds = {"more than": self.above, "at least": self.least}
        bounds |= {"less than": self.below, "at most": self.most}
        return " and ".join(f"{w} {b:,}" for w, b in bounds.items() if b is not None)


def setting(
    heading: str,
    default: Any,
    help: str,
    short: str | None = None,
    *,
    within: Range | None = None,
    choices: tuple[str, ...] = (),
    needs: str | tuple[str, str] | None = None,
    excludes: str | None = None,
    otherwise: str = "",
    folder: bool = False,
    lines: bool = False,
    argument: str = "",
) -> Any:
    """Declare a setting.

    Args:
        heading: in `--help`.
        default: its only one.
        help: its text in `--help`.
        short: a one-letter flag.
        within: the numbers that make sense.
        choices: the texts that are known.
        needs: a setting without which this one has no effect, or one and the value it must have.
        excludes: a setting beside which this one has no effect.
        otherwise: what else helps when a number is out of range.
        folder: a text that may be a folder, in which `~` is the user's home.
        lines: a text that may have several lines, and may be empty.
        argument: given without a flag, and how help calls it; needed unless its default is None.
    """
    metadata = {
        "heading": heading,
        "help": help,
        "short": short,
        "within": within,
        "choices": choices,
        "needs": needs,
        "excludes": excludes,
        "otherwise": otherwise,
        "folder": folder,
        "lines": lines,
        "argument": argument,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the settings of all commands have: the checks that follow from their declarations.

    Attributes:
        given: names of the settings that were asked for.  A value that happens to be the default
            is told from the default by it.
    """

    given: frozenset[str] = dataclasses.field(
        default=frozenset(), repr=False, compare=False, kw_only=True
    )

    def __post_init__(self) -> None:
        """Check each value, and that each that was given has an effect.

        Raises:
            ConfigError: naming the setting, its value, and what would do.
        """
        fields = declared(self)
        changed = {f.name for f in fields if getattr(self, f.name) != f.default}
        object.__setattr__(self, "given", self.given | changed)
        for field in fields:
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                checked: Any = tuple(_checked(field, item) for item in value)
            else:
                checked = _checked(field, value)
            object.__setattr__(self, field.name, checked)
        _check_effect(self, fields)


def declared(settings: Any) -> list[dataclasses.Field[Any]]:
    """The settings of a command, in their order; `given` is none.

    Args:
        settings: a class or an object of it.
    """
    return [field for field in dataclasses.fields(settings) if "heading" in field.metadata]


def flag(name: str, value: Any = True) -> str:
    """A setting as the command line has it; with False the flag that turns it off."""
    return ("--no-" if value is False else "--") + name.replace("_", "-")


def shown(value: Any) -> str:
    """A value as messages show it: text in quotes, and never long."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"of {value.bit_length():,} bits"
    if isinstance(value, Path):
        value = str(value)
    return _SHOWN.repr(value)


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """A value of a setting, with `~` written out."""
    name, declaration = field.name, field.metadata
    if value is None or isinstance(value, bool):
        return value
    if (within := declaration["within"]) and value not in within:
        otherwise = f", or {declaration['otherwise']}" if declaration["otherwise"] else ""
        raise ConfigError(f"{name} {shown(value)} is out of range; use {within}{otherwise}")
    if isinstance(value, (str, Path)) and value != field.default:
        text = str(value)
        if isinstance(field.default, tuple):  # data files have the names they have
            text = text.encode("utf-8", "replace").decode()
        _check_text(name, text, declaration["lines"])
    if (choices := declaration["choices"]) and value not in choices:
        raise ConfigError(f"{name} {shown(value)} is unknown; use one of {', '.join(choices)}")
    if isinstance(value, Path):
        return expand_home(value, name)
    if declaration["folder"] and value.startswith("~"):
        return str(expand_home(Path(value), name))
    return value


def _check_text(name: str, text: str, lines: bool) -> None:
    """Refuse what neither a file system nor a tokenizer takes, and what would break a message."""
    if not text.strip():
        raise ConfigError(f"{name} {shown(text)} is blank; write something, or leave it out")
    for character in text:
        what = _UNUSABLE.get(unicodedata.category(character))
        if what and not (lines and character in "\n\t"):
            _check_locale(name, text)
            raise ConfigError(
                f"{name} {shown(text)} holds {what} ({character!r}); write it without"
            )


def _check_locale(name: str, text: str) -> None:
    """Refuse what is UTF-8 and was taken for something else, as the locale has it."""
    encoding = sys.getfilesystemencoding()
    try:
        meant = os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return
    if meant != text and encoding != "utf-8":
        raise ConfigError(
            f"{name} {shown(meant)} is UTF-8, but the locale's encoding is {encoding}; "
            "set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
        )


def _check_effect(settings: Settings, fields: Iterable[dataclasses.Field[Any]]) -> None:
    """Refuse a setting that was given and has no effect because of another."""
    for field in fields:
        name, needs, excludes = field.name, field.metadata["needs"], field.metadata["excludes"]
        value = getattr(settings, name)
        if name not in settings.given or value is None or value is False:
            continue
        if isinstance(needs, tuple):
            _check_choice(settings, name, *needs)
        elif needs and not getattr(settings, needs):
            if needs in settings.given:  # and off
                raise ConfigError(
                    f"{flag(name)} has no effect with {flag(needs, False)}; leave one of them out"
                )
            raise ConfigError(
                f"{flag(name)} has no effect without {flag(needs)}; pass that, too, or leave it out"
            )
        if excludes and excludes in settings.given and getattr(settings, excludes):
            raise ConfigError(
                f"{flag(name)} has no effect with {flag(excludes)}; leave one of them out"
            )


def _check_choice(settings: Settings, name: str, other: str, value: str) -> None:
    """Refuse a setting that goes with one choice of another, where it is not chosen."""
    chosen = getattr(settings, other)
    if chosen == value:
        return
    if other in settings.given:
        raise ConfigError(
            f"{flag(name)} has no effect with {flag(other)} {chosen}; leave one of them out"
        )
    raise ConfigError(
        f"{flag(name)} has no effect without {flag(other)} {value}; pass that, too, or leave it out"
    )
