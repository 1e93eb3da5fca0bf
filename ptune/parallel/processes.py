"""The processes of a run, as torchrun says in the environment."""

from __future__ import annotations

import os
import signal

# By which a run is asked to end: of a terminal, of a machine that shuts down or a container that is
# stopped, of a closed terminal.
END_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


def process_count() -> int:
    """How many processes compute together, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_number() -> int:
    """Which of them this one is, from 0 on."""
    return int(os.environ.get("RANK", "0"))


def is_first_process() -> bool:
    """Whether this process is the one that writes."""
    return process_number() == 0


def number_on_machine() -> int:
    """Which one it is on its machine, and so which card it has."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def started_here() -> bool:
    """Whether torchrun, or `launch`, has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ
