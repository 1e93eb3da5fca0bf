"""A folder that does not say whether it is of ChatGLM2 or 3, through all commands."""

import json
import shutil

import pytest
from fixtures.checkpoints import write_json
from fixtures.runs import write_records
from typer.testing import CliRunner

from ptune.base.folder import find_base_model
from ptune.checkpoint.metadata import CheckpointConfig
from ptune.cli import app

SILENT = "says whether it is of chatglm2 or chatglm3 (no name in config.json or"
COMMON = ["--device", "cpu"]
TRAIN = ["--pre-seq-len", "4", "--batch-size", "4", "--max-steps", "1", "--max-target-length", "16"]


def run(*arguments, input=None):
    return CliRunner().invoke(app, [str(a) for a in arguments], input=input)


def refused(result, *parts):
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: "), result.stderr
    for part in parts:
        assert str(part) in result.stderr


@pytest.fixture(scope="module")
def silent(toy_model, tmp_path_factory):
    """The folder, beside dev.json and what a training as ChatGLM3 left in out/."""
    root = tmp_path_factory.mktemp("silent")
    folder = shutil.copytree(toy_model(3), root / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["_name_or_path"]
    write_json(folder / "config.json", config | {"rope_ratio": 16})
    data = write_records(root / "dev.json", 5)
    asked = ["train", "-m", folder, "-d", data, "-o", root / "out", *COMMON, *TRAIN]
    refused(run(*asked), folder, SILENT, "say it with --prompt-format")
    assert run(*asked, "--prompt-format", "chatglm3").exit_code == 0
    return root


def test_training_metadatas_it(silent):
    record = CheckpointConfig.read(silent / "out")
    assert record.prompt_format == record.settings["prompt_format"] == "chatglm3"


def test_commands_of_the_bare_model_ask_for_it(silent):
    data, model = ["--data", silent / "dev.json"], ["--model", silent / "model"]
    for command in (
        ["preview", *data, *model],
        ["eval", *data, *model, *COMMON],
        ["chat", *model, *COMMON],
        ["merge", *model, "-c", silent / "model" / "prefix", "-o", silent / "merged"],
    ):
        refused(run(*command), SILENT, "; say it with --prompt-format")
    assert run("estimate", *model).exit_code == 0  # where it makes no difference


def test_the_prompt_is_the_one_that_is_said(silent):
    asked = ["preview", "-d", silent / "dev.json", "-m", silent / "model", "--json"]
    found = {}
    for kind in ("chatglm2", "chatglm3"):
        lines = run(*asked, "--prompt-format", kind).stdout.splitlines()
        found[kind] = json.loads(lines[0])["input_ids"]
    named = run("preview", "-d", silent / "dev.json", "-m", silent / "model", "--json")
    assert named.exit_code == 1
    assert found["chatglm2"] != found["chatglm3"]
    refused(run(*asked, "--prompt-format", "chatglm"), "--prompt-format chatglm does not go with")
    refused(run(*asked, "--prompt-format", "glm"), "prompt_format 'glm' is unknown; use one of")


def test_a_checkpoint_and_a_merged_folder_say_it_themselves(silent, tmp_path):
    checkpoint = ["-c", silent / "out"]
    answers = {}
    for name, which in {"checkpoint": checkpoint, "merged": ["-m", tmp_path / "merged"]}.items():
        if name == "merged":
            assert run("merge", *checkpoint, "-o", tmp_path / "merged").exit_code == 0
        evaluated = run("eval", *which, "-d", silent / "dev.json", "-o", tmp_path / name, *COMMON)
        assert evaluated.exit_code == 0, evaluated.output
        file = tmp_path / name / "generated_predictions.jsonl"
        said = run("chat", *which, *COMMON, "--no-do-sample", input="类型#裙\n")
        assert said.exit_code == 0, said.output
        answers[name] = (file.read_text("utf-8"), said.stdout)
        options = ["--prompt-format", "chatglm2"]
        refused(run("chat", *which, *COMMON, *options), "chatglm2", "chatglm3")
    assert answers["checkpoint"] == answers["merged"]
    assert find_base_model(tmp_path / "merged").config["prompt_format"] == "chatglm3"


def test_going_on_as_another_generation(silent):
    asked = ["train", "-m", silent / "model", "-d", silent / "dev.json", *COMMON, *TRAIN]
    resumed = run(*asked, "-o", silent / "out", "--resume", "--prompt-format", "chatglm2")
    refused(resumed, "prompt_format 'chatglm3' -> 'chatglm2'")
    started = ["-o", silent / "new", "--init-prefix", silent / "out"]
    assert run(*asked, *started).exit_code == 0  # the prefix says it
    refused(
        run(*asked, "-o", silent / "other", *started[2:], "--prompt-format", "chatglm2"),
        f"the prefix in {silent / 'out'} was trained with the prompt of chatglm3, but",
    )


def test_doctor(silent):
    found = run("doctor", "--model", silent / "model", "--json")
    assert "say it with --prompt-format" in found.stdout
    found = run("doctor", "--model", silent / "model", "--prompt-format", "chatglm3", "--json")
    assert "ChatGLM3-6B in" in found.stdout
