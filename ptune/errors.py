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
    """Training cannot continue with its settings: its numbers are not finite."""


class EvaluationError(PTuneError):
    """An evaluation came to nothing: its numbers are not finite."""


class RequestTooLong(PTuneError):
    """A prompt and its longest answer never fit the memory that there is for them."""


def reason_of(error: OSError) -> str:
    """What the system complains about, and the path, without the number of the error."""
    if not error.strerror:
        return str(error)
    path = f": {os.fsdecode(error.filename)}" if error.filename is not None else ""
    return f"{error.strerror}{path}"
