"""Checks of the torch build, the driver and the cards against each other."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

from ptune.commands.doctor.check import Check, Status
from ptune.commands.doctor.driver import DriverFacts
from ptune.commands.doctor.host import GB
from ptune.commands.doctor.packages import fits
from ptune.commands.doctor.torch_build import how_to_install, how_to_update, oldest_driver, runs_on
from ptune.commands.doctor.torch_probe import CardFacts, TorchFacts

# The weights of ChatGLM-6B in 4 bits, and a short text beside them.
_LEAST_CARD_MEMORY = 5 * GB
_OTHERS = 0.2  # the share of a card's memory that other programs may hold unmentioned
_MEMORY_ERROR = "out of memory"


@dataclass(frozen=True)
class Machine:
    """Facts about torch, driver and cards of a machine.

    Attributes:
        torch: from `probe_torch`.
        driver: from `read_driver`.
        torch_wanted: the versions that ptune asks for, such as `>=2.7`.
        python: major and minor version.
        windows: whether it is.
    """

    torch: TorchFacts
    driver: DriverFacts
    torch_wanted: str
    python: tuple[int, int] = sys.version_info[:2]
    windows: bool = platform.system() == "Windows"

    @property
    def capabilities(self) -> list[tuple[int, int]]:
        """Of all cards, as torch or else the driver sees them."""
        return [card.capability for card in self.torch.cards] or self.driver.capabilities

    @property
    def installation(self) -> str:
        """The command that installs a torch build for this machine."""
        return how_to_install(
            self.capabilities, self.driver.branch, self.python, self.torch.version, self.windows
        )


def judge_torch(machine: Machine) -> list[Check]:
    """Check that torch is installed, in a supported version, and built for these cards."""
    torch = machine.torch
    if torch.version is None:
        said = f"cannot be imported ({torch.error})"
        return [Check("torch", "torch", Status.FAILURE, said, machine.installation)]
    if fits(torch.version, machine.torch_wanted):
        version = Check("torch", "torch", Status.OK, torch.version)
    else:
        said = f"{torch.version} is installed; ptune asks for {machine.torch_wanted}"
        version = Check("torch", "torch", Status.FAILURE, said, machine.installation)
    return [version, _judge_build(machine)]


def _judge_build(machine: Machine) -> Check:
    torch, driver = machine.torch, machine.driver
    if torch.cuda:
        code = ", ".join(torch.architectures) or "unknown architectures"
        return Check("torch", "build", Status.OK, f"CUDA {torch.cuda}, with code for {code}")
    if torch.hip:
        said = f"ROCm {torch.hip}; ptune is tested on NVIDIA cards and the CPU"
        mend = "nothing if the lines of the cards are ok; --device cpu works in any case"
        return Check("torch", "build", Status.WARNING, said, mend)
    if driver.version or driver.cards or driver.on_bus:
        names = ", ".join(card.name for card in driver.cards) or "an NVIDIA card"
        said = f"for the CPU alone, but {names} is in this machine"
        return Check("torch", "build", Status.FAILURE, said, machine.installation)
    if torch.mps:
        return Check("torch", "build", Status.OK, "for Apple's GPU, which --device mps takes")
    return Check("torch", "build", Status.OK, "for the CPU alone")


def judge_driver(machine: Machine) -> Check:
    """Check that there is a driver, new enough for torch's CUDA."""
    torch, driver = machine.torch, machine.driver
    needed = oldest_driver(torch.cuda) if torch.cuda else None
    if driver.version is None:
        if torch.cards:
            return Check("torch", "driver", Status.OK, "its version is not told")
        if driver.on_bus or driver.error:
            said = "an NVIDIA card is in this machine, but its driver does not answer"
            said += f" ({driver.error})" if driver.error else ""
            mend = f"{how_to_update(needed or 525, [])}; in a container, docker run --gpus all"
            return Check("torch", "driver", Status.WARNING, said, mend)
        return Check("torch", "driver", Status.OK, "none, and no NVIDIA card found")
    if needed and driver.branch is not None and driver.branch < needed:
        said = f"{driver.version} is too old for torch's CUDA {torch.cuda}, which needs R{needed}"
        mend = how_to_update(needed, machine.capabilities)
        if not machine.installation.startswith("install"):
            mend += f"; or {machine.installation}"
        return Check("torch", "driver", Status.FAILURE, said, mend)
    return Check("torch", "driver", Status.OK, driver.version)


def judge_cards(machine: Machine) -> list[Check]:
    """Three checks a card: memory, torch, precision; or one that says why there is no card."""
    torch = machine.torch
    if torch.version is None:
        return []
    checks = [check for card in torch.cards for check in _judge_card(card, machine)]
    if len(torch.cards) < torch.visible:
        said = f"{torch.error}"
        mend = "restart the machine; if nvidia-smi does not answer either, install the driver anew"
        checks.append(Check("cards", "cards", Status.FAILURE, said, mend))
    return checks or [_judge_absence(machine)]


def _judge_absence(machine: Machine) -> Check:
    torch, driver = machine.torch, machine.driver
    slow = "ptune computes on the CPU, which for ChatGLM-6B is very slow"
    if torch.cuda and driver.visible_devices is not None and driver.version:
        said = f"CUDA_VISIBLE_DEVICES={driver.visible_devices!r} hides every card; {slow}"
        return Check("cards", "cards", Status.WARNING, said, "unset CUDA_VISIBLE_DEVICES")
    if torch.cuda and driver.version:
        needed = oldest_driver(torch.cuda)
        said = f"there are some, but torch sees none ({torch.error}); {slow}"
        if needed and driver.branch is not None and driver.branch < needed:
            mend = "mend the driver (above)"
        else:
            mend = "restart the machine; in a container, docker run --gpus all"
        return Check("cards", "cards", Status.FAILURE, said, mend)
    if torch.mps:
        said = "no NVIDIA card, but Apple's GPU; without --device, ptune computes on the CPU"
        return Check("cards", "cards", Status.WARNING, said, "pass --device mps")
    mend = "use a machine with an NVIDIA card for training; --model tiny is fast without"
    return Check("cards", "cards", Status.WARNING, f"torch sees none; {slow}", mend)


def _judge_card(card: CardFacts, machine: Machine) -> list[Check]:
    name = f"card {card.index}"
    native = card.dtype == "bfloat16"
    reason = "" if native else ", with loss scaling: bfloat16 is native from 8.0 on"
    return [
        _judge_card_memory(card, name),
        _judge_code(card, name, machine),
        Check("cards", f"{name} precision", Status.OK, f"{card.dtype}{reason}"),
    ]


def _judge_card_memory(card: CardFacts, name: str) -> Check:
    capability = ".".join(map(str, card.capability))
    said = f"{card.name}, compute capability {capability}, {card.total / GB:.1f} GB"
    if card.free is None:
        return Check("cards", name, Status.OK, said)
    said += f", {card.free / GB:.1f} free"
    if card.free < _LEAST_CARD_MEMORY:
        said += f"; ChatGLM-6B takes {_LEAST_CARD_MEMORY // GB} even in 4 bits"
    elif card.total - card.free < _OTHERS * card.total:
        return Check("cards", name, Status.OK, said)
    else:
        said += "; other programs hold the rest"
    mend = "end the programs that nvidia-smi lists"
    if card.total < _LEAST_CARD_MEMORY:
        mend = "use a larger card, or --device cpu"
    return Check("cards", name, Status.WARNING, said, mend)


def _judge_code(card: CardFacts, name: str, machine: Machine) -> Check:
    torch, architecture = machine.torch, "sm_{}{}".format(*card.capability)
    has_code = not torch.architectures or runs_on(card.capability, torch.architectures)
    name += " with torch"
    if card.error is None:
        return Check("cards", name, Status.OK, f"a plain addition runs ({architecture})")
    if torch.cuda and not has_code:
        said = f"torch {torch.version} has no code for {architecture}: {card.error}"
        return Check("cards", name, Status.FAILURE, said, machine.installation)
    said = f"a plain addition fails: {card.error}"
    mend = "restart the machine; if that does not help, install the driver anew"
    if _MEMORY_ERROR in card.error.lower():
        mend = "end the programs that nvidia-smi lists"
    return Check("cards", name, Status.FAILURE, said, mend)
