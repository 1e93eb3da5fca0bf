"""OpenMP's threads, of which each thread that computes has a team of its own.

A team lives as long as the thread that it was made for.  Where the teams together have more threads
than there are cores, GNU's OpenMP lets all of them sleep between two parallel regions, and waking
them costs a decode step on a CPU a tenth of its time.
https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def compute_apart(function: Callable[[], T]) -> T:
    """Run a function in a thread that ends with it, and its team with the thread.

    For what comes before the thread that will compute: loading a model.

    Args:
        function: of which Ctrl-C leaves off waiting.

    Returns:
        Its result.

    Raises:
        Exception: whatever it raised.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    # A daemon, as the end of the process must not wait for it.
    thread = threading.Thread(target=run, name="ptune-load", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors.pop()
    return results.pop()
