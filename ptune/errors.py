"""The errors that ptune raises on purpose: one line for the user, no traceback.

Every message reads `<what> <offending value> <where it came from>; <what to do>`.
"""

from __future__ import annotations

import os


class PTuneError(Exception):
    """Anything the user can mend; the command line prints it on one line and exits with 1."""


class ConfigError(PTuneError):
    """A setting, a flag or a configuration file is wrong."""


class DataError(PTuneError):
    """A data file or a record in it is wrong."""


class ModelError(PTuneError):
    """A model folder is missing, incomplete, or not one that ptune knows."""


class CheckpointError(PTuneError):
    """A prefix checkpoint is missing, incomplete, or belongs to another model."""


class TrainingError(PTuneError):
    """Training cannot continue."""


class DivergenceError(TrainingError):
    """A training has come to numbers that are not finite, and not out of it."""


class EvaluationError(PTuneError):
    """An evaluation came to nothing: its numbers are not finite."""


class RequestTooLong(PTuneError):
    """A prompt and its longest answer never fit the memory that there is for them."""


def missing_package(
    error: ModuleNotFoundError, who: str, extra: str, instead: str = ""
) -> Exception:
    """What to raise where an extra is not installed; the error itself for a module of this package.

    Args:
        error: of the import.
        who: needs the package.
        extra: brings it.
        instead: what else to do.
    """
    if error.name is None or error.name.split(".")[0] == "ptune":
        return error
    return ConfigError(
        f"{who} needs {error.name}, which is not installed; "
        f"run pip install 'ptune[{extra}]'{instead}"
    )


def reason_of(error: OSError) -> str:
    """What the system complains about, and the path, without the number of the error."""
    if not error.strerror:
        return str(error)
    path = f": {os.fsdecode(error.filename)}" if error.filename is not None else ""
    return f"{error.strerror}{path}"
