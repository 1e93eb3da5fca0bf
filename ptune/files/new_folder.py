"""Where a command may write a whole new folder."""

from __future__ import annotations

import os
from pathlib import Path

from ptune.errors import ConfigError


def check_new_folder(output: Path, model: Path) -> None:
    """Refuse a folder that something is lost or hidden in.

    Args:
        output: to be written.
        model: the folder of the base model.

    Raises:
        ConfigError: it holds something, is a file or the folder one is in, or lies in the base.
    """
    place = Path(os.path.realpath(output))  # which a link to itself does not raise in
    if place == Path.cwd():
        raise ConfigError(f"output {output} is the folder you are in; pass a new folder")
    if output.is_dir() and not output.is_symlink():
        if found := sorted(path.name for path in output.iterdir()):
            some = ", ".join(found[:3]) + (" ..." if len(found) > 3 else "")
            raise ConfigError(f"output {output} is not empty ({some}); pass a new folder")
    elif output.exists() or output.is_symlink():
        raise ConfigError(f"output {output} is a file or a link; pass a new folder")
    if place.is_relative_to(model.resolve()):
        raise ConfigError(
            f"output {output} lies inside the base model {model}; pass a folder elsewhere"
        )
