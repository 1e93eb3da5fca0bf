"""Settings from defaults, a YAML file and flags, in rising precedence."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from ptune.config.declaration import Settings, declared, flag, shown
from ptune.config.number import parse_number, parse_whole
from ptune.config.original_flags import advice
from ptune.config.settings import TrainSettings
from ptune.errors import ConfigError
from ptune.files.home import expand_home

S = TypeVar("S", bound=Settings)

_ONE_BEFORE = {"init_prefix"}  # a list, which earlier versions recorded as a text alone


def resolve(kind: type[S], flags: Mapping[str, Any], config_file: Path | None = None) -> S:
    """Build settings from the defaults, a YAML file and flags, in rising precedence.

    Args:
        kind: one of the dataclasses of `ptune.config.settings`.
        flags: by setting name, of its type or, for a path, text; None means not given.
        config_file: a YAML mapping from setting names (`-` and `_` are the same) to values.

    Raises:
        ConfigError: an unknown key, with the nearest known one, a value of a wrong type, or what a
            setting's declaration refuses.
    """
    hints = typing.get_type_hints(kind)
    given = {
        name: _convert(value, hints[name], name, "")
        for name, value in flags.items()
        if value is not None
    }
    values = _read_yaml(kind, config_file) if config_file else {}
    for name, other in _exclusive(kind):
        # Flags win: what the file says in their stead is not asked for.
        if given.get(name) and other not in given:
            values.pop(other, None)
    values |= given
    return kind(**values, given=frozenset(values))


def _exclusive(kind: type[Settings]) -> list[tuple[str, str]]:
    """Pairs of settings of which one alone has an effect, both ways round."""
    pairs = [(field.name, field.metadata["excludes"]) for field in declared(kind)]
    pairs = [pair for pair in pairs if pair[1]]
    return pairs + [(other, name) for name, other in pairs]


def _read_yaml(kind: type[Settings], file: Path) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    names = [field.name for field in declared(kind)]
    values: dict[str, Any] = {}
    for key, value in _pairs(expand_home(file, "config")):
        name = str(key).replace("-", "_")
        if name not in names:
            if known := advice(name, "train", names, yaml=True):
                raise ConfigError(f"{key!r} in {file} is the original's; {known}")
            near = difflib.get_close_matches(name, names, n=1)
            advised = f"did you mean {near[0]!r}?" if near else "see `ptune train --help` for all"
            raise ConfigError(f"{shown(key)} in {file} is no setting; {advised}")
        if name in values:
            raise ConfigError(f"{name} stands twice in {file}; leave one of the lines out")
        values[name] = _convert(value, hints[name], name, f" in {file}")
    return values


def _pairs(file: Path) -> list[tuple[Any, Any]]:
    """Keys and values of a YAML mapping, in their order, one key perhaps twice.

    Numbers stay the text that they are: YAML would read 010 as 8, and 1:30 as 90.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    for kind in ("int", "float"):
        tag = f"tag:yaml.org,2002:{kind}"
        Loader.add_constructor(tag, lambda loader, node: loader.construct_scalar(cast(Any, node)))
    try:
        text = file.read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader=Loader)
        loader = Loader("")
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"config file {file} holds no settings; write lines of `name: value`")
        loader.flatten_mapping(node)
        return [
            (loader.construct_object(key, deep=True), loader.construct_object(value, deep=True))
            for key, value in node.value
        ]
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: no UTF-8
        raise ConfigError(
            f"config file {file} cannot be read ({_reason(error)}); pass a YAML file"
        ) from error


def _reason(error: Exception) -> str:
    """Why a YAML file cannot be read, on one line."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    mark = getattr(error, "problem_mark", None)
    if mark is None:  # of the reader of characters, and of UTF-8
        return " ".join(str(error).split())
    said = (getattr(error, name, None) for name in ("context", "problem"))
    return f"line {mark.line + 1}, column {mark.column + 1}: {', '.join(filter(None, said))}"


def _convert(value: Any, hint: Any, name: str, where: str) -> Any:
    """Give a value the type of its setting; YAML reads 2e-2 as text.

    Args:
        value: of the command line or a YAML file.
        hint: the type.
        name: of the setting.
        where: the value stands, for errors: ` in train.yaml`, or nothing for a flag.
    """
    if typing.get_origin(hint) is types.UnionType:
        if value is None:
            return None
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if value is None:
        raise ConfigError(f"{name}{where} has no value; write one, or leave the line out")
    if typing.get_origin(hint) is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        kind = typing.get_args(hint)[0]
        return tuple(_convert(item, kind, name, where) for item in items)
    if hint is Path and isinstance(value, Path):
        return value
    if hint is Path and isinstance(value, str) and not value.strip():
        raise ConfigError(f"{name} {value!r}{where} is blank; name a file or folder")
    example = {bool: "true", int: "16", float: "0.02"}.get(hint, "text")
    wrong = ConfigError(
        f"{name} {shown(value)}{where} is not of type {hint.__name__}; write e.g. "
        + (f"{name}: {example}" if where else f"{flag(name)} {example}")
    )
    if isinstance(value, bool) != (hint is bool):
        raise wrong
    if not isinstance(value, (bool, str, int, float)):
        raise wrong
    try:
        return {int: parse_whole, float: parse_number}.get(hint, hint)(value)
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
    for name in _ONE_BEFORE & known.keys():
        if isinstance(known[name], str):
            known[name] = [known[name]]
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
