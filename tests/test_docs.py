"""The documentation says what the code does: commands, modules, every line of the README."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ptune.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAIN = ROOT / "examples" / "AdvertiseGen" / "train.json"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def shell_lines() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("name", ["make_cli", "make_original_flags"])
def test_made_page_is_up_to_date(name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.FILE.read_text(encoding="utf-8") == made.page(), "run `make docs`"


def test_architecture_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for file in (ROOT / "ptune").rglob("*.py"):
        name = file.relative_to(ROOT / "ptune").as_posix()
        if not name.startswith("tiny/") and file.name != "__init__.py":
            assert f"`{name}`" in page, name


def test_data_page_names_formats_and_schemas() -> None:
    from ptune.data import files, rows, schemas

    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    endings = files.JSON_ENDINGS + files.TABLE_ENDINGS + files.ARROW_ENDINGS + files.PACKED_ENDINGS
    names = [f".{ending}" for ending in endings]
    names += [column for schema in schemas.SCHEMAS for column in schema.columns]
    assert [name for name in names if f"`{name}`" not in page] == []
    assert f"{rows.MAX_RECORD:,}" in page


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 250


def test_readme_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_readme_make_targets_exist() -> None:
    targets = [line.split()[1] for line in shell_lines() if line.startswith("make ")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short train.json and dev.json, as the README's commands expect them."""
    path = tmp_path_factory.mktemp("readme")
    lines = TRAIN.read_text(encoding="utf-8").splitlines(keepends=True)
    (path / "train.json").write_text("".join(lines[:8]), encoding="utf-8")
    (path / "dev.json").write_text("".join(lines[8:10]), encoding="utf-8")
    return path


def test_readme_commands_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    commands = [shlex.split(line) for line in shell_lines() if line.startswith("ptune ")]
    assert {"train", "eval", "chat", "merge", "preview"} <= {words[1] for words in commands}
    quick = {"train": ["--max-steps", "2"], "eval": ["--max-new-tokens", "4"]}
    quick |= {"chat": ["--max-new-tokens", "4"], "serve": ["--port", "0"]}
    # It would serve until somebody ends it; `tests/commands/test_serve.py` lets it.
    monkeypatch.setattr("ptune.commands.serve.Server.run", lambda self, sockets: None)
    monkeypatch.setattr("ptune.commands.serve.configure_log", lambda: None)
    for words in commands:
        arguments = [
            "tiny" if word == "THUDM/chatglm-6b" else word for word in words[1:]
        ] + quick.get(words[1], [])
        result = CliRunner().invoke(app, arguments, input="你好\n")
        assert result.exit_code == 0, (arguments, result.output)
    assert (folder / "chatglm-6b-tuned" / "config.json").is_file()


def test_readme_python_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (code,) = blocks("python")
    exec(code.replace("chatglm-6b-tuned", "tiny"))
    said = capsys.readouterr().out
    flags = ["chat", "--model", "tiny", "--no-do-sample", "--max-new-tokens", "64"]
    answer = CliRunner().invoke(app, flags, input="你好\n").stdout
    assert said == answer * 2 and answer != "\n"


def test_records_of_the_data_page_are_read(tmp_path: Path) -> None:
    from ptune.base.folder import Generation
    from ptune.data.messages import ROLES
    from ptune.data.records import read_records

    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    lines = "".join(re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL))
    (tmp_path / "train.json").write_text(lines, encoding="utf-8")
    loaded = read_records([tmp_path / "train.json"], generation=Generation.CHATGLM3)
    first, second, third = (row["messages"] for row in loaded.records)
    assert first == second
    assert [message["role"] for message in first] == [
        *("system", "user", "assistant", "observation", "assistant")
    ]
    assert [message["learn"] for message in third] == [None, None, False, None, None]
    for name in ROLES:
        assert f"`{name}`" in page, name


def test_readme_data_is_read(tmp_path: Path) -> None:
    from ptune.data.records import read_records

    (line,) = blocks("json")
    (tmp_path / "train.json").write_text(line, encoding="utf-8")
    records = read_records([tmp_path / "train.json"]).records
    assert records[0]["messages"][0]["content"] == json.loads(line)["content"]
