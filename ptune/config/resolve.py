"""Settings from defaults, a YAML file and flags, in rising precedence."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ptune.config.settings import TrainSettings
from ptune.errors import ConfigError

S = TypeVar("S")


def resolve(kind: type[S], flags: Mapping[str, Any], config_file: Path | None = None) -> S:
    """Build settings from the defaults, a YAML file and flags, in rising precedence.

    Args:
        kind: one of the dataclasses of `ptune.config.settings`.
        flags: by setting name; None means not given.
        config_file: a YAML mapping from setting names (`-` and `_` are the same) to values.

    Raises:
        ConfigError: an unknown key, with the nearest known one, or a value of a wrong type.
    """
    values = _read_yaml(kind, config_file) if config_file else {}
    values |= {name: value for name, value in flags.items() if value is not None}
    return kind(**values)


def _read_yaml(kind: type[Any], file: Path) -> dict[str, Any]:
    import yaml

    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"config file {file} cannot be read ({reason}); pass a YAML file"
        ) from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"config file {file} holds no settings; write lines of `name: value`")
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in loaded.items():
        name = str(key).replace("-", "_")
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1, cutoff=0)
            raise ConfigError(f"{key!r} in {file} is no setting; did you mean {near[0]!r}?")
        values[name] = _convert(value, hints[name], name, file)
    return values


def _convert(value: Any, hint: Any, name: str, file: Path) -> Any:
    """Give a YAML value the type of its setting; YAML reads 2e-2 as text."""
    if typing.get_origin(hint) is types.UnionType:
        if value is None:
            return None
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if value is None:
        raise ConfigError(f"{name} in {file} has no value; write one, or leave the line out")
    if typing.get_origin(hint) is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_convert(item, Path, name, file) for item in items)
    wrong = ConfigError(
        f"{name} {value!r} in {file} is not of type {hint.__name__}; write e.g. {name}: "
        + {bool: "true", int: "16", float: "0.02"}.get(hint, "text")
    )
    if hint is bool or isinstance(value, bool):
        if not (hint is bool and isinstance(value, bool)):
            raise wrong
        return value
    if isinstance(value, (list, dict)):
        raise wrong
    try:
        if hint is int and float(value) != int(float(value)):
            raise wrong
        return int(float(value)) if hint is int else hint(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise wrong from error


def check_recorded(settings: Mapping[str, Any]) -> None:
    """Check the settings of a training as its checkpoint recorded them, in types and ranges.

    Those of another version of ptune may be missing or more.

    Raises:
        ValueError: a value that no training has.
    """
    hints = typing.get_type_hints(TrainSettings)
    known = {name: value for name, value in settings.items() if name in hints}
    for name, value in known.items():
        if not _is_written_as(value, hints[name]):
            raise ValueError(f"{name} {value!r} in its settings")
    try:
        TrainSettings(**{"data": (Path(),), **known})
    except ConfigError as error:
        raise ValueError(str(error).partition(";")[0]) from error


def _is_written_as(value: Any, hint: Any) -> bool:
    """Whether a value is what JSON holds for one of a type: paths as text, tuples as lists."""
    if typing.get_origin(hint) is types.UnionType:
        return any(_is_written_as(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    kinds = {float: (float, int), Path: (str,)}.get(hint, (hint,))
    return type(value) in kinds
