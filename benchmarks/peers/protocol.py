"""The protocol of a peer process: one step at a time, by standard input and output.

A peer is a subprocess, in an environment of its own.  It sends its versions, then answers every
line `step` with the seconds and the peak memory of one step.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from typing import Any

# Whatever a library prints must not come between the lines of the protocol.
_answers = sys.stdout
sys.stdout = sys.stderr


def read_task() -> dict[str, Any]:
    """Read the task: the JSON file named by the first argument.

    Returns:
        `config` (of ChatGLM-6B, as in config.json), `records` (`input_ids` and `labels` each),
        `batch_size`, `pre_seq_len`, `max_length`, `threads`, and what one peer alone reads.
    """
    with open(sys.argv[1], encoding="utf-8") as file:
        task: dict[str, Any] = json.load(file)
    return task


def answer(**content: Any) -> None:
    """Send one line."""
    print(json.dumps(content), file=_answers, flush=True)


def asked_for_a_step() -> bool:
    """Wait for the next line; False at the end."""
    return sys.stdin.readline().strip() == "step"


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(step: Callable[[int], float], **about: Any) -> None:
    """Answer until the parent closes the input.

    Args:
        step: computes the step of this number, and returns its seconds.
        about: versions and settings.
    """
    answer(ready=True, **about)
    number = 0
    while asked_for_a_step():
        answer(seconds=step(number), peak=peak_memory())
        number += 1
