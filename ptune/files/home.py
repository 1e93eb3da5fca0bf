"""`~` in a path: the user's home, also where no shell has written it out."""

from __future__ import annotations

from pathlib import Path

from ptune.errors import ConfigError


def expand_home(path: Path, name: str) -> Path:
    """Write out a leading `~` or `~user`.

    Args:
        path: perhaps with one.
        name: of the setting, for the error.

    Raises:
        ConfigError: there is no such home.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{name} {path} begins with a home that is not there; write the whole path"
        ) from error
