"""What torch says about itself and the cards, found out in a process of its own.

A torch that cannot be imported, a driver that hangs or a card whose context is broken ends that
process, not ptune's.  That process runs `main`, which prints one JSON object a line.
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
_MAX_WORDS = 300  # characters of somebody else's error that are shown


@dataclass(frozen=True)
class CardFacts:
    """A card that torch sees.

    Attributes:
        index: as in `cuda:N`.
        name: as the driver gives it.
        capability: compute capability.
        total: bytes.
        free: bytes; None if it could not be asked.
        error: what a plain addition on the card said; None if it gave the right sum.
        dtype: the precision that ptune computes in there.
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
    """The installed torch.

    Attributes:
        version: such as `2.7.1+cu126`; None if it cannot be imported.
        error: why it cannot be imported, or why it sees no card, in its own words.
        cuda: the CUDA version of the build, or None.
        hip: the ROCm version of the build, or None.
        mps: whether an Apple GPU is there.
        architectures: what a CUDA build has code for.
        cards: those that answered.
        visible: how many there are.
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
    """Ask torch in a process of its own.

    Args:
        command: what to run.
        timeout: seconds.
    """
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, errors="replace"
        )
        output, last_words = run.stdout, _last_line(run.stderr) or f"exit status {run.returncode}"
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if error.stdout else ""
        last_words = f"no answer within {timeout:g} seconds"
    except OSError as error:
        output, last_words = "", str(error)
    return _read_facts(output, last_words)


def _read_facts(output: str, last_words: str) -> TorchFacts:
    """Put the lines of the other process together; the last ones may be missing."""
    found = []
    for line in output.splitlines():
        try:
            value = json.loads(line)
        except ValueError:  # a library printed something of its own
            continue
        if isinstance(value, dict):
            found.append(value)
    if not found:
        return TorchFacts(None, error=last_words)
    torch_facts, *cards = found
    if len(cards) < torch_facts["visible"] and not torch_facts["error"]:
        torch_facts["error"] = f"card {len(cards)} gave no answer: {last_words}"
    torch_facts["architectures"] = tuple(torch_facts["architectures"])
    for card in cards:
        card["capability"] = tuple(card["capability"])
    return TorchFacts(**torch_facts, cards=tuple(CardFacts(**card) for card in cards))


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1].strip()[:_MAX_WORDS] if text.strip() else ""


def _words(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = str(error).strip().splitlines()
    return (lines[0].strip() if lines else type(error).__name__)[:_MAX_WORDS]


def _ask_torch() -> Iterator[dict[str, Any]]:
    """The facts, as JSON has them: torch first, then card by card."""
    import torch

    error = None
    if torch.version.cuda or torch.version.hip:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except Exception as reason:  # whatever the driver does wrong is what is asked for
            error = _words(reason)
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
    except Exception as reason:  # see above
        error = _words(reason)
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
    """Print what torch says; each line at once, since the next card may end the process."""
    for facts in _ask_torch():
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
