"""Probes torch and the cards that it sees, in a subprocess.

A torch that cannot be imported, a driver that hangs or a card whose context is broken ends the
subprocess alone.  It runs `main`, which prints one JSON object a line.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_PROGRAM = "from ptune.commands.doctor.torch_probe import main; main()"
_TIMEOUT = 120  # seconds; the first import from a cold disk takes the most
_MAX_ERROR = 300  # characters of another program's error that are shown


@dataclass(frozen=True)
class CardFacts:
    """A card that torch sees.

    Attributes:
        index: as in `cuda:N`.
        name: as the driver gives it.
        capability: compute capability.
        total: bytes.
        free: bytes; None if it could not be asked.
        error: of a plain addition on the card; None if it gave the right sum.
        dtype: the default precision of ptune there.
    """

    index: int
    name: str
    capability: tuple[int, int]
    total: int
    free: int | None
    error: str | None
    dtype: str


@dataclass(frozen=True)
class TorchFacts:
    """Facts about the installed torch.

    Attributes:
        version: such as `2.7.1+cu126`; None if it cannot be imported.
        error: why it cannot be imported, or why it sees no card.
        cuda: the CUDA version of the build, or None.
        hip: the ROCm version of the build, or None.
        mps: whether an Apple GPU is there.
        architectures: what a CUDA build has code for.
        cards: those whose probe ended.
        visible: how many torch sees.
    """

    version: str | None
    error: str | None = None
    cuda: str | None = None
    hip: str | None = None
    mps: bool = False
    architectures: tuple[str, ...] = ()
    cards: tuple[CardFacts, ...] = ()
    visible: int = 0


def probe_torch(
    command: tuple[str, ...] = (sys.executable, "-c", _PROGRAM),
    timeout: float = _TIMEOUT,
) -> TorchFacts:
    """Run `main` in a subprocess and read its facts.

    Args:
        command: what to run.
        timeout: seconds.
    """
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, errors="replace"
        )
        output, failure = run.stdout, _last_line(run.stderr) or f"exit status {run.returncode}"
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if error.stdout else ""
        failure = f"no answer within {timeout:g} seconds"
    except OSError as error:
        output, failure = "", str(error)
    return _read_facts(output, failure)


def _read_facts(output: str, failure: str) -> TorchFacts:
    """Read the lines of the subprocess; the last ones may be missing."""
    found = []
    for line in output.splitlines():
        try:
            value = json.loads(line)
        except ValueError:  # a library printed something of its own
            continue
        if isinstance(value, dict):
            found.append(value)
    if not found:
        return TorchFacts(None, error=failure)
    torch_facts, *cards = found
    if len(cards) < torch_facts["visible"] and not torch_facts["error"]:
        torch_facts["error"] = f"card {len(cards)} gave no answer: {failure}"
    torch_facts["architectures"] = tuple(torch_facts["architectures"])
    for card in cards:
        card["capability"] = tuple(card["capability"])
    return TorchFacts(**torch_facts, cards=tuple(CardFacts(**card) for card in cards))


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1].strip()[:_MAX_ERROR] if text.strip() else ""


def _first_line(error: BaseException) -> str:
    """The first line of an error, or its type if it has no text."""
    lines = str(error).strip().splitlines()
    return (lines[0].strip() if lines else type(error).__name__)[:_MAX_ERROR]


def _ask_torch() -> Iterator[dict[str, Any]]:
    """Yield the facts as JSON objects: torch first, then card by card."""
    import torch

    error = None
    if torch.version.cuda or torch.version.hip:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except Exception as reason:  # any failure of the driver is a fact
            error = _first_line(reason)
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # get_arch_list() is empty while there is no card, the flags of the build are not.
    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)() or ""
    yield {
        "version": str(torch.__version__),
        "error": None if visible else error,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "mps": torch.backends.mps.is_available(),
        "architectures": flags.split(),
        "visible": visible,
    }
    for index in range(visible):
        yield _ask_card(index)


def _ask_card(index: int) -> dict[str, Any]:
    import torch

    from ptune.device.precision import choose_dtype

    device = torch.device("cuda", index)
    properties = torch.cuda.get_device_properties(device)
    error, free = None, None
    try:
        free = torch.cuda.mem_get_info(device)[0]
        total = (torch.arange(4, device=device) + 1).sum().item()
        if total != 10:
            error = f"1 + 2 + 3 + 4 gave {total}"
    except Exception as reason:  # as above
        error = _first_line(reason)
    return {
        "index": index,
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "total": properties.total_memory,
        "free": free,
        "error": error,
        "dtype": str(choose_dtype(None, device)).removeprefix("torch."),
    }


def main() -> None:
    """Print the facts, flushing each line, since the next card may end the process."""
    for facts in _ask_torch():
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
