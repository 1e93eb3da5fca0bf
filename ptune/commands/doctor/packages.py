"""Checks of Python and the installed packages against the requirements of ptune."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ptune.commands.doctor.check import Check, Status

# Works without; see `judge_packages`.
_OPTIONAL = {"cpm_kernels": "it is only for --quantization-backend cpm"}
_DEVELOPMENT = "dev"  # the extra of those who work on ptune
_TORCH = "torch"  # which build is needed depends on the cards; see `cards.py`


@dataclass(frozen=True)
class PackageFacts:
    """The requirements of ptune, and the installed packages.

    Attributes:
        python: the running version.
        requires_python: such as `>=3.10`.
        requirements: as in the package's metadata; None if ptune is not installed.
        extras: names of the optional dependencies, such as `nf4`.
        installed: version by name; a package that is not there is not in it.
        has_pkg_resources: which cpm_kernels imports, and setuptools 82 no longer has.
    """

    python: str
    requires_python: str
    requirements: tuple[str, ...] | None
    installed: Mapping[str, str]
    extras: tuple[str, ...] = ()
    has_pkg_resources: bool = True

    def specifier(self, package: str) -> str:
        """The versions of a package that ptune asks for, such as `>=2.7`; empty for any."""
        return _specifiers(self.requirements or ()).get(package, "")


def read_packages() -> PackageFacts:
    """Read the metadata of ptune and of its requirements; nothing is imported."""
    requirements: tuple[str, ...] | None = None
    extras: tuple[str, ...] = ()
    requires_python = ""
    try:
        about = metadata.metadata("ptune")
        requirements = tuple(metadata.requires("ptune") or ())
        requires_python = "".join(about.get_all("Requires-Python") or ())
        extras = tuple(about.get_all("Provides-Extra") or ())
    except metadata.PackageNotFoundError:
        pass
    installed = {}
    for extra in ("", *extras):
        for name in _specifiers(requirements or (), extra):
            try:
                installed[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
    return PackageFacts(
        platform.python_version(),
        requires_python,
        requirements,
        installed,
        tuple(extra for extra in extras if extra != _DEVELOPMENT),
        importlib.util.find_spec("pkg_resources") is not None,
    )


def _specifiers(requirements: Sequence[str], extra: str = "") -> dict[str, str]:
    """Packages and versions asked for on this system, by ptune itself or by one extra alone."""
    found = {}
    for text in requirements:
        requirement = Requirement(text)
        marker = requirement.marker
        if extra:
            wanted = marker is not None and not marker.evaluate({"extra": ""})
            wanted = wanted and marker is not None and marker.evaluate({"extra": extra})
        else:
            wanted = marker is None or marker.evaluate({"extra": ""})
        if wanted:
            found[requirement.name] = str(requirement.specifier)
    return found


def fits(version: str, specifier: str) -> bool:
    """Whether a version is among those asked for; pre-releases count as what they precede."""
    return SpecifierSet(specifier).contains(version, prereleases=True)


def judge_python(facts: PackageFacts) -> Check:
    """Check that this Python is supported."""
    said = f"{facts.python} on {platform.system()} {platform.machine()}"
    if fits(facts.python, facts.requires_python):
        return Check("machine", "python", Status.OK, said)
    said += f"; ptune asks for {facts.requires_python}"
    return Check(
        "machine", "python", Status.FAILURE, said, "make an environment with a newer Python"
    )


def judge_packages(facts: PackageFacts) -> list[Check]:
    """One check for all packages that fit, and one for each that does not; torch has its own."""
    if facts.requirements is None:
        said = "ptune is not installed, so that the versions it asks for are unknown"
        return [Check("packages", "ptune", Status.WARNING, said, "pip install . in ptune's folder")]
    right, rest = [], []
    for name, specifier in _specifiers(facts.requirements).items():
        version = facts.installed.get(name)
        if name == _TORCH:
            continue
        if version and fits(version, specifier):
            right.append(f"{name} {version}")
        else:
            rest.append(_judge_package(name, version, specifier))
    for extra in facts.extras:
        for name, specifier in _specifiers(facts.requirements, extra).items():
            version = facts.installed.get(name)
            if version and fits(version, specifier):
                right.append(f"{name} {version}")
            elif version:
                said = f"{version} is installed; ptune[{extra}] asks for {specifier}"
                mend = f'pip install "{name}{specifier}"'
                rest.append(Check("packages", name, Status.WARNING, said, mend))
    if "cpm_kernels" in facts.installed and not facts.has_pkg_resources:
        said = f"cannot be imported beside setuptools 82 or newer; {_OPTIONAL['cpm_kernels']}"
        rest.append(Check("packages", "cpm_kernels", Status.OK, said))
    return [Check("packages", "as asked for", Status.OK, ", ".join(right) or "none"), *rest]


def _judge_package(name: str, version: str | None, specifier: str) -> Check:
    """The check of a package that is missing, or of another version than required."""
    if version is None and name in _OPTIONAL:
        return Check("packages", name, Status.OK, f"not installed; {_OPTIONAL[name]}")
    found = f"{version} is installed" if version else "not installed"
    said = f"{found}; ptune asks for {specifier or 'it'}"
    return Check("packages", name, Status.FAILURE, said, f'pip install "{name}{specifier}"')
