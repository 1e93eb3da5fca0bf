"""What the Dockerfile promises.  `dockerfile.py` beside this file runs it; here it is read."""

import json
import re
import shutil
import sys
from pathlib import Path

import dockerfile
import pytest
from dockerfile import ROOT, Instruction, Replay, parse

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
INSTRUCTIONS = parse(TEXT)


def all_of(keyword: str) -> list[Instruction]:
    return [item for item in INSTRUCTIONS if item.keyword == keyword]


def the_run_of(part: str) -> Instruction:
    (found,) = [item for item in all_of("RUN") if part in item.text]
    return found


def copied() -> list[str]:
    return [name for item in all_of("COPY") for name in item.body.split()[:-1]]


def test_default_and_p100_images() -> None:
    default = dockerfile.base_image(INSTRUCTIONS, {})
    p100 = dockerfile.base_image(INSTRUCTIONS, {"P100": "1"})
    assert re.fullmatch(r"nvidia/cuda:13\.\d+\.\d+-base-ubuntu24\.04", default)
    assert re.fullmatch(r"nvidia/cuda:12\.6\.\d+-base-ubuntu24\.04", p100)  # as its torch


def test_another_value_of_p100_names_no_image() -> None:
    assert dockerfile.base_image(INSTRUCTIONS, {"P100": "yes"}) == "p100-yes"


def test_runs_as_an_ordinary_user_at_the_end() -> None:
    (user,) = all_of("USER")
    number = user.text.split(":")[0]
    assert int(number) > 0
    assert f"useradd --uid {number} " in the_run_of("useradd").body
    assert user.line > max(item.line for item in all_of("RUN"))


def test_entry_point_is_the_command_of_the_package() -> None:
    (entry,) = all_of("ENTRYPOINT")
    assert json.loads(entry.text) == ["ptune"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r"^\[project\.scripts\]\nptune = ", project, re.MULTILINE)


def test_volumes_are_made_before_and_belong_to_the_user() -> None:
    (volume,) = all_of("VOLUME")
    folders = set(json.loads(volume.text))
    assert {"/models", "/output"} < folders
    (made,) = [words for words in the_run_of("useradd").commands if words[0] == "install"]
    assert folders == {word for word in made if word.startswith("/")}
    assert made[made.index("--owner") + 1] == "ptune"
    assert all_of("WORKDIR")[-1].text in folders


def test_caches_are_in_a_volume() -> None:
    (volume,) = all_of("VOLUME")
    values = {k: v for item in all_of("ENV") for k, v in item.assignments.items()}
    assert values["HOME"] == values["XDG_CACHE_HOME"] == "/cache"
    assert "/cache" in json.loads(volume.text)


def test_sources_exist_and_reach_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    assert "*" in ignored  # nothing but what is named
    for name in copied():
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored, name
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied())


def test_nothing_secret() -> None:
    names = [n for item in all_of("ARG") + all_of("ENV") for n in item.assignments]
    words = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|_KEY", re.IGNORECASE)
    assert not [name for name in names if words.search(name)]
    assert "." not in copied()
    assert "://" not in TEXT  # no index of packages, no address with a password in it


def test_layers_are_cached() -> None:
    """torch, then the packages, then ptune, each before what would make it run again."""
    torch = the_run_of("constraints.txt torch").line
    packages = the_run_of("--requirement requirements.txt").line
    package = the_run_of("--no-deps .").line
    copies: dict[str, int] = {}
    for item in all_of("COPY"):
        for name in item.body.split()[:-1]:
            assert name not in copies, f"{name} is copied twice"
            copies[name] = item.line
    assert copies["constraints.txt"] < torch < copies["pyproject.toml"]
    assert copies["pyproject.toml"] < packages < min(copies["ptune"], copies["README.md"])
    assert copies["ptune"] < package
    for line in (torch, packages, package):
        (step,) = [item for item in INSTRUCTIONS if item.line == line]
        assert "--mount=type=cache,target=/root/.cache/pip" in step.flags


def test_versions_are_those_of_the_constraints() -> None:
    for item in all_of("RUN"):
        for words in item.commands:
            if words[:2] == ["pip", "install"] and "--no-deps" not in words:
                assert words[words.index("--constraint") + 1] == "constraints.txt"
                assert not [word for word in words if "==" in word]


def test_compiler_for_triton_is_there() -> None:
    packages = the_run_of("apt-get").body
    for name in ("gcc", "libc6-dev", "python3-dev", "python3-venv"):
        assert re.search(rf" {name}\b", packages)
    assert "--no-install-recommends" in packages and "rm -rf /var/lib/apt/lists/*" in packages


def test_page_says_what_the_file_does() -> None:
    page = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")
    values = {k: v for item in all_of("ARG") for k, v in item.assignments.items()}
    assert set(re.findall(r"--build-arg (\w+)=", page)) == set(values)
    assert f"torch {values['TORCH_P100']} is the newest" in page
    (volume,) = all_of("VOLUME")
    assert re.findall(r"^\| `(/\w+)` \|", page, re.MULTILINE) == ["/models", "/output", "/cache"]
    assert set(json.loads(volume.text)) == {"/models", "/output", "/cache"}
    rows = {"| from Turing": {}, "| P100": {"P100": "1"}}
    for start, build_args in rows.items():
        tag = dockerfile.base_image(INSTRUCTIONS, build_args).split(":")[1]
        cuda = ".".join(tag.split(".")[:2])
        (row,) = [line for line in page.splitlines() if line.startswith(start)]
        assert f"| {cuda} |" in row


def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **build_args: str) -> Replay:
    """The scratch folder after all steps, of which those that install are left out."""
    replay = Replay(tmp_path / "root", build_args)
    started: list[list[str]] = []
    run = Replay.run

    def light(self: Replay, command: list[str], *more: object) -> None:
        started.append(command)
        if "pip install" not in command[-1] and "-m venv" not in command[-1]:
            run(self, [part.replace("python -c", f"{sys.executable} -c") for part in command])

    monkeypatch.setattr(Replay, "run", light)
    last = max(item.line for item in all_of("FROM"))
    for item in INSTRUCTIONS:
        if item.line > last:
            replay.step(item)
    assert not [words for words in started if "apt-get" in words[-1] or "useradd" in words[-1]]
    return replay


needs_tomllib = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="the image's Python 3.12 reads TOML, 3.10 does not"
)


@needs_tomllib
@pytest.mark.skipif(shutil.which("sed") is None, reason="no sed")
@pytest.mark.parametrize(
    ("build_args", "torch"),
    [
        ({}, re.search(r"^torch==.*$", CONSTRAINTS, re.MULTILINE)[0]),  # type: ignore[index]
        ({"P100": "1"}, "torch==2.7.1"),
        ({"P100": "1", "TORCH_P100": "2.14.0"}, "torch==2.14.0"),
        ({"P100": "0", "TORCH_P100": "2.14.0"}, None),
    ],
)
def test_torch_of_a_build(
    build_args: dict[str, str], torch: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = prepared(tmp_path, monkeypatch, **build_args)
    constraints = (replay.root / "src" / "constraints.txt").read_text(encoding="utf-8")
    assert re.findall(r"^torch==.*$", constraints, re.MULTILINE) == [
        torch or re.findall(r"^torch==.*$", CONSTRAINTS, re.MULTILINE)[0]
    ]
    others = [line for line in CONSTRAINTS.splitlines() if not line.startswith("torch==")]
    assert [x for x in constraints.splitlines() if not x.startswith("torch==")] == others


@needs_tomllib
def test_replay_puts_everything_below_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tomllib

    replay = prepared(tmp_path, monkeypatch)
    root = tmp_path / "root"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = (root / "src" / "requirements.txt").read_text(encoding="utf-8")
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["serve"], *extras["web"], *extras["tune"]]
    assert requirements.splitlines() == [name for name in asked if name != "ptune[serve]"]
    assert (root / "src" / "ptune" / "cli.py").is_file()
    assert replay.workdir == root / "output"
    assert replay.environment["HOME"] == str(root / "cache")
    assert replay.environment["PATH"].startswith(f"{root / 'opt' / 'ptune'}/bin:")


def test_dry_run_downloads_nothing_whole(tmp_path: Path) -> None:
    replay = Replay(tmp_path / "root", {}, dry_run=True)
    steps = [replay.command(item.body) for item in all_of("RUN") if "pip install" in item.body]
    assert len(steps) == 3
    for step in steps:
        assert "pip install --dry-run " in step and "--use-feature=fast-deps" in step
    assert "'pip>=25.3'" in replay.command(the_run_of("-m venv").body)
    assert Replay(tmp_path / "other", {}).command("pip install torch") == "pip install torch"


def test_a_failing_step_ends_the_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replay = Replay(tmp_path / "root", {})
    with pytest.raises(SystemExit, match="FAILED: /bin/sh -c 'echo why; exit 3'"):
        replay.step(Instruction(1, "RUN", "echo why; exit 3"))
    assert "why" in capsys.readouterr().out


def test_a_traceback_is_a_failure_even_where_its_exit_code_is_not(tmp_path: Path) -> None:
    replay = Replay(tmp_path / "root", {})
    text = "Traceback (most recent call last):"
    with pytest.raises(SystemExit, match="FAILED"):
        replay.run(["/bin/sh", "-c", f"echo '{text}'; exit 1"], accepted=(0, 1))


def test_parse() -> None:
    text = (
        "# note\nFROM a AS b\n\nRUN --mount=type=cache,target=/c \\\n    x 'a && b' \\\n && y; z\n"
    )
    image, run = parse(text)
    assert (image.keyword, image.text, image.line) == ("FROM", "a AS b", 2)
    assert run.flags == ["--mount=type=cache,target=/c"]
    assert run.body == "x 'a && b' && y; z"
    assert run.commands == [["x", "a && b"], ["y"], ["z"]]
    (env,) = parse('ENV A=1 B="2 3" C=$D')
    assert env.assignments == {"A": "1", "B": "2 3", "C": "$D"}
    (arg,) = parse("ARG A")
    assert arg.assignments == {"A": None}


@pytest.mark.parametrize("text", ["ADD a b", "RUN <<END", "run a"])
def test_parse_refuses_what_it_cannot_replay(text: str) -> None:
    with pytest.raises(ValueError, match="Dockerfile line 1: cannot replay"):
        parse(text)


def test_hadolint_has_no_complaints() -> None:
    if dockerfile.hadolint() is None:
        pytest.skip("hadolint is not installed")
    dockerfile.lint(ROOT / "Dockerfile")


def test_lint_says_when_hadolint_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dockerfile, "hadolint", lambda: None)
    dockerfile.lint(ROOT / "Dockerfile")
    assert "NOT checked" in capsys.readouterr().out
