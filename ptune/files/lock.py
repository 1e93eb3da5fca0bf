"""Locks on output folders, which a dead process does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ptune.errors import ConfigError
from ptune.files.atomic import remove_partials

LOCK_FILE = ".lock"


@contextmanager
def holding(output: Path, what: str, clear: bool = True) -> Iterator[None]:
    """Keep others out of an output folder, and clear away what a killed one has left.

    Args:
        output: made if it does not exist; a `.lock` stays behind in it.
        what: writes there, for errors: a training, an evaluation.
        clear: remove what is half-written.

    Raises:
        ConfigError: another process is at it, or the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            output.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(output / LOCK_FILE, timeout=0))
            if clear:
                remove_partials(output)
        except Timeout as error:
            raise ConfigError(
                f"another {what} writes into {output}; wait for its end, or pass another --output"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"output {output} cannot be written ({error.strerror or error}); mend that, or "
                "pass another --output"
            ) from error
        yield


def check_free(output: Path, what: str) -> None:
    """Refuse early an output folder that another process is writing into.

    Raises:
        ConfigError: naming it.
    """
    if (output / LOCK_FILE).is_file():
        with holding(output, what, clear=False):
            pass
