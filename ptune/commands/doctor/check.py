"""The result of one check of `ptune doctor`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Status(str, Enum):
    """How a check ended, from best to worst."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Check:
    """The result of a check, a line of the report.

    Attributes:
        group: heading of the line, such as `torch`.
        name: what was checked.
        status: failure where ptune cannot work as the machine is, warning where it works worse.
        message: what was found.
        mend: the command or step that fixes it; empty only if `status` is ok.
    """

    group: str
    name: str
    status: Status
    message: str
    mend: str = ""


def overall(checks: Iterable[Check]) -> Status:
    """The worst status of all."""
    return max((check.status for check in checks), key=list(Status).index, default=Status.OK)
