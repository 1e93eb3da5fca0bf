"""Which torch build runs on which card: architectures, CUDA versions, drivers.

The lists of architectures were read from the published Linux wheels; the rule of
`runs_on` is the one of the CUDA C++ programming guide (binary and PTX compatibility).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Capability = tuple[int, int]

# Boards with processor and card in one: their machine code and that of other cards of the same
# major version do not mix.
_TEGRA = {(5, 3), (6, 2), (7, 2), (8, 7)}
# The oldest driver branch for each major version of CUDA (minor version compatibility).
_OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
LAST_DRIVER_BEFORE_TURING = 580
_TURING = (7, 5)


@dataclass(frozen=True)
class TorchBuild:
    """A wheel that `pip install` takes.

    Attributes:
        requirement: for pip.
        release: the lowest version that meets it.
        cuda: the CUDA version it was built with.
        architectures: what its machine code is for.
        newest_python: the newest Python with such a wheel, or None for any.
    """

    requirement: str
    release: tuple[int, int]
    cuda: tuple[int, int]
    architectures: tuple[str, ...]
    newest_python: tuple[int, int] | None


BUILDS = (  # newest first
    TorchBuild(
        "torch>=2.11",
        (2, 11),
        (13, 0),
        ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
        None,
    ),
    TorchBuild(
        "torch==2.10.0",
        (2, 10),
        (12, 8),
        ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
        (3, 14),
    ),
    TorchBuild(
        "torch==2.7.1",
        (2, 7),
        (12, 6),
        ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"),
        (3, 13),
    ),
)


def runs_on(capability: Capability, architectures: Iterable[str]) -> bool:
    """Whether a card can run code built for these architectures.

    Machine code (`sm_XZ`) runs on cards X.Y with Y >= Z, intermediate code (`compute_AB`) on all
    from A.B on.

    Args:
        capability: of the card.
        architectures: as `torch.cuda.get_arch_list()` gives them.
    """
    return any(_runs(capability, architecture) for architecture in architectures)


def _runs(capability: Capability, architecture: str) -> bool:
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if match is None:
        return False
    kind, suffix = match.group(1), match.group(4)
    built = (int(match.group(2)), int(match.group(3)))
    # An `a` is for one architecture alone; machine code for Tegra boards and others do not mix.
    if suffix == "a" or (kind == "sm" and (capability in _TEGRA or built in _TEGRA)):
        return capability == built
    if kind == "compute" and not suffix:
        return built <= capability
    return built[0] == capability[0] and built[1] <= capability[1]


def oldest_driver(cuda: str) -> int | None:
    """The oldest driver branch for a CUDA version such as `12.6`; None if it is not known."""
    return _OLDEST_DRIVER.get(int(cuda.split(".")[0]))


def find_build(
    capabilities: Sequence[Capability], driver: int | None, python: tuple[int, int] | None = None
) -> TorchBuild | None:
    """The newest build that runs on all these cards.

    Args:
        capabilities: of the cards; none asks for nothing.
        driver: branch of the installed driver; None asks for nothing.
        python: the version in use; None for any.
    """
    for build in BUILDS:
        if not all(runs_on(capability, build.architectures) for capability in capabilities):
            continue
        needed = _OLDEST_DRIVER[build.cuda[0]]
        if driver is not None and driver < needed:
            continue
        if python and build.newest_python and python > build.newest_python:
            continue
        return build
    return None


def how_to_install(
    capabilities: Sequence[Capability],
    driver: int | None,
    python: tuple[int, int],
    installed: str | None,
    windows: bool = False,
) -> str:
    """The command that installs a torch build for these cards, or what prevents it.

    Args:
        capabilities: of the cards.
        driver: branch of the installed driver, or None.
        python: the version in use.
        installed: the torch version that is there, which pip would otherwise keep.
        windows: there pip's own wheel is for the CPU alone.
    """
    build = find_build(capabilities, driver, python)
    if build is None:
        return _obstacle(capabilities, driver)
    cuda = ".".join(map(str, build.cuda))
    if windows:
        return (
            f"take {build.requirement.replace('==', ' ')} for CUDA {cuda} with the command that "
            "the selector on PyTorch's installation page shows for Windows"
        )
    command = f'pip install "{build.requirement}"'
    return f"pip uninstall -y torch && {command}" if _meets(installed, build) else command


def _meets(installed: str | None, build: TorchBuild) -> bool:
    """Whether pip takes the installed version for the wanted one, although the build differs."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", installed or "")
    if match is None:
        return False
    if "==" in build.requirement:
        return build.requirement.endswith("==" + match.group())
    return (int(match.group(1)), int(match.group(2))) >= build.release


def _obstacle(capabilities: Sequence[Capability], driver: int | None) -> str:
    if (build := find_build(capabilities, driver)) and build.newest_python:
        python = ".".join(map(str, build.newest_python))
        return f'make an environment with Python {python}, then pip install "{build.requirement}"'
    if build := find_build(capabilities, None):
        return f"{how_to_update(_OLDEST_DRIVER[build.cuda[0]], capabilities)}, then ptune doctor"
    if len(set(capabilities)) > 1:
        return (
            "no torch build has code for all cards of this machine; show it those of one kind, "
            "e.g. CUDA_VISIBLE_DEVICES=0"
        )
    if capabilities and capabilities[0] in _TEGRA:
        return "install NVIDIA's own torch for Jetson boards"
    return "use another card, or --device cpu"


def how_to_update(needed: int, capabilities: Sequence[Capability]) -> str:
    """What to do about a driver that is too old.

    Args:
        needed: the oldest branch that will do.
        capabilities: of the cards in the machine.
    """
    old = any(capability < _TURING for capability in capabilities)
    last = f" (R{LAST_DRIVER_BEFORE_TURING} is the last for this card)" if old else ""
    return f"install NVIDIA driver R{needed} or newer{last}"
