"""The commands of examples/knowledge-qa run, its search finds, and its data is what it says."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from ptune.cli import app

EXAMPLE = Path(__file__).parents[2] / "examples" / "knowledge-qa"
README = (EXAMPLE / "README.md").read_text(encoding="utf-8")
# As few steps as may be, and as many as distilling needs to be seen.
SHORT = {"eval": ["--max-new-tokens", "12"], "chat": ["--max-new-tokens", "12"]}
STEPS = {"out/distilled": "30"}


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def retrieve():
    return SimpleNamespace(**runpy.run_path(str(EXAMPLE / "retrieve.py")))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the example, where its commands are given."""
    copy = tmp_path / "knowledge-qa"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("out"))
    monkeypatch.chdir(copy)
    return copy


def commands():
    text = "".join(re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)).replace("\\\n", "")
    return [line for line in text.splitlines() if not line.startswith("cd ")]


def shortened(line):
    words = shlex.split(line.replace("THUDM/chatglm3-6b", "tiny"))[1:]
    if words[0] != "train":
        return words + SHORT.get(words[0], [])
    if "--max-steps" in words:
        at = words.index("--max-steps")
        del words[at : at + 2]
    return [*words, "--max-steps", STEPS.get(words[words.index("--output") + 1], "1")]


def test_the_commands_of_its_readme_run(folder):
    found: dict[str, int] = {}
    for line in commands():
        if line.startswith("ptune "):
            words = shortened(line)
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, (line, result.output)
            found[words[0]] = found.get(words[0], 0) + 1
        else:
            here = line.replace("python ", f"{shlex.quote(sys.executable)} ", 1)
            subprocess.run(here, shell=True, check=True)
    assert found.keys() == {"train", "eval", "chat", "score"}

    def loss(name):
        return json.loads((folder / "out" / name / "eval_results.json").read_text())["loss"]

    assert loss("context") < loss("none") / 3
    assert loss("distilled/eval-dev") < loss("none") / 2


def test_held_out_questions_are_about_the_same_facts():
    for part in (EXAMPLE, EXAMPLE / "product"):
        train, dev = rows(part / "train.json"), rows(part / "dev.json")
        assert {row["answer"] for row in dev} == {row["answer"] for row in train}
        assert not {row["question"] for row in dev} & {row["question"] for row in train}
    assert f"{len(rows(EXAMPLE / 'train.json'))} pairs" in README


def test_what_the_readme_says_of_the_search(folder, retrieve, capsys):
    said = re.search(r"comes first (\d+) times, and is among the\nfirst two (\d+)\.", README)
    for top, hits in enumerate(said.groups(), 1):
        retrieve.main(["documents", "--data", "dev.json", "--output", "found", "--top", str(top)])
        assert f"is in {hits} of 36 contexts" in capsys.readouterr().out
    record = rows(folder / "found")[0]
    assert record.keys() == {"question", "answer", "context"}
    assert record["context"].count("\n") >= 1


def test_the_best_paragraph_comes_first(retrieve):
    index = retrieve.Index(["猫可以养。", "狗不可以养。" + "走廊不放东西。" * 9, "电梯。"])
    assert index.best("可以养猫吗？", 3)[:2] == [0, 1]
    assert index.best("狗", 1) == [1]
    assert index.best("。", 3) == [0, 1, 2]


def test_paragraphs_are_named_by_file_and_place(retrieve, tmp_path):
    (tmp_path / "a.txt").write_text("一\n二\n\n三\n", encoding="utf-8")
    (tmp_path / "b.md").write_text("四", encoding="utf-8")
    assert retrieve.read_paragraphs([tmp_path]) == {"a.txt 1": "一\n二", "a.txt 2": "三"}
    assert retrieve.read_paragraphs([tmp_path / "b.md"]) == {"b.md 1": "四"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--question", "猫"], "no .txt file in ."),
        (["--data", "dev.json"], "--data and --output belong together"),
        (["--question", "猫", "--output", "x"], "--data and --output belong together"),
    ],
)
def test_refused(words, said, retrieve, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        retrieve.main([".", *words])
    assert said in capsys.readouterr().err
