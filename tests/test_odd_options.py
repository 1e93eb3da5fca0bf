"""Odd values for every option of every command: one line of complaint, and never a traceback.

The options are those that the settings declare, so that a new one is tried without being named
here.  Everything that takes long is out of reach: data and checkpoints do not exist.
"""

import dataclasses
import functools
import random
import re
import typing
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ptune import load_tokenizer
from ptune.cli import app
from ptune.commands.doctor.check import Check, Status
from ptune.config.declaration import declared
from ptune.config.predict_settings import PredictSettings
from ptune.config.settings import (
    ChatSettings,
    DoctorSettings,
    EstimateSettings,
    EvalSettings,
    ExportSettings,
    MergeSettings,
    PreviewSettings,
    ScoreSettings,
    ServeSettings,
    TrainSettings,
)
from ptune.config.tune_settings import TuneSettings

NUMBERS = [
    *("-1", "0", "-0.0", "1e308", "1e-320", str(10**14), str(2**32), str(2**63), str(2**64)),
    *("9" * 400, "9" * 5000, "nan", "inf", "-inf", "1_0", "0x10", "1,000", "", "many", "\0"),
]
TEXTS = [
    *("", " ", "\n", "\0", "a\0b", "a\nb", "\x1b[31mred", "\udcff", "😀", "文" * 3000),
    *("x" * 10_000, "x/" * 3000, "~", "~/x", "~nobody-here/x", ".", "..", "/", "-", "--", "--data"),
    *("none", "null", "true", "[a]", "{}", "%s", "$HOME", "cuda:99", "mps", "meta", "-1", "nan"),
]
ODD = [*NUMBERS, *TEXTS]
# What each command is given beside the option: enough to come to its work, which then is not there.
GIVEN = {
    "train": (TrainSettings, ["--model", "tiny", "--data", "absent.json"]),
    "tune": (
        TuneSettings,
        ["--model", "tiny", "--data", "absent.json", "--eval-fraction", "0.1"],
    ),
    "eval": (EvalSettings, ["--model", "tiny", "--data", "absent.json"]),
    "predict": (
        PredictSettings,
        ["--model", "tiny", "--data", "absent.json", "--output", "new"],
    ),
    "chat": (ChatSettings, ["--checkpoint", "absent"]),
    "merge": (MergeSettings, ["--checkpoint", "absent", "--output", "new"]),
    "export": (ExportSettings, ["--checkpoint", "absent", "--output", "new"]),
    "preview": (PreviewSettings, ["--model", "tiny", "--data", "absent.json"]),
    "serve": (ServeSettings, ["--checkpoint", "absent", "--port", "0"]),
    "score": (ScoreSettings, ["absent.jsonl"]),
    "doctor": (DoctorSettings, []),
    "estimate": (EstimateSettings, ["--card", "P100-16GB"]),
}
TRIED = [(command, field) for command, (kind, _) in GIVEN.items() for field in declared(kind)]
COMBINATIONS = 40


@functools.cache
def _command():
    return typer.main.get_command(app)


@functools.cache
def _tokenizer():
    return load_tokenizer("tiny")


@pytest.fixture(autouse=True)
def _nothing_heavy(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError(f"this takes long: {arguments}")

    monkeypatch.chdir(tmp_path)
    command, tokenizer = _command(), _tokenizer()  # made once, not for each line
    monkeypatch.setattr("typer.testing._get_command", lambda app: command)
    monkeypatch.setattr("ptune.training.train.build_tokenizer", lambda base: tokenizer)
    monkeypatch.setattr("ptune.commands.preview.build_tokenizer", lambda base: tokenizer)
    monkeypatch.setattr("ptune.commands.tune.inputs.build_tokenizer", lambda base: tokenizer)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr("ptune.training.train.build_model", refuse)
    monkeypatch.setattr("ptune.evaluation.answering.load_model", refuse)
    monkeypatch.setattr("ptune.commands.chat.run.load_model", refuse)
    said = [Check("machine", "ptune", Status.OK, "0")]
    monkeypatch.setattr("ptune.commands.doctor.examine.examine", lambda settings: said)


def odd_values(field):
    """Values to try; a switch has none of its own."""
    if isinstance(field.default, bool):
        return [""]
    return NUMBERS if field.metadata["within"] else TEXTS


def arguments_for(field, value):
    """The option with the value, as a user would write it."""
    if field.metadata["argument"]:
        return [value]
    flag = "--" + field.name.replace("_", "-")
    return [flag] if isinstance(field.default, bool) else [f"{flag}={value}"]


def beside(given, *fields):
    """What a command is given beside these options, each of which it takes once."""
    flags = {"--" + field.name.replace("_", "-") for field in fields}
    pairs = zip(given[::2], given[1::2], strict=False)
    return [word for pair in pairs if pair[0] not in flags for word in pair]


def complaint(words):
    """Run a command line; what is wrong with its ending, or nothing."""
    result = CliRunner().invoke(app, words, input="")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"{type(result.exception).__name__}: {result.exception}"
    if result.exit_code not in (0, 1, 2):
        return f"exit code {result.exit_code}"
    if "Traceback" in result.output:
        return "a traceback"
    if result.exit_code == 1 and not re.fullmatch(r"error: [^\n]+; [^\n]+\n", result.stderr):
        return f"not one line: {result.stderr!r}"
    if result.exit_code == 2 and not result.stderr.startswith("Usage: "):
        return f"neither one line nor a usage: {result.stderr!r}"
    return "" if len(result.stderr) < 6000 else f"{len(result.stderr)} characters"


@pytest.mark.parametrize(
    ("command", "field"), TRIED, ids=[f"{command}-{field.name}" for command, field in TRIED]
)
def test_every_option_with_odd_values(command, field):
    _, given = GIVEN[command]
    for value in odd_values(field):
        rest = [] if field.metadata["argument"] else beside(given, field)
        words = [command, *rest, *arguments_for(field, value)]
        assert not (found := complaint(words)), (words, found)


@pytest.mark.parametrize("seed", range(COMBINATIONS))
def test_options_in_combination(seed):
    draw = random.Random(seed)
    command = draw.choice(list(GIVEN))
    kind, given = GIVEN[command]
    drawn = draw.sample(declared(kind), draw.randint(1, min(4, len(declared(kind)))))
    words = [command, *beside(given, *drawn)]
    words = words if draw.random() < 0.8 else [command]
    for field in drawn:
        if not field.metadata["argument"]:
            words += arguments_for(field, draw.choice(odd_values(field)))
    assert not (found := complaint(words)), (words, found)


YAML = ["[1, 2]", "{a: 1}", "&a [*a]", "2024-01-01", "!!binary aGk=", "!!set {a}", "'", "|", "]"]


@pytest.mark.parametrize("field", declared(TrainSettings), ids=lambda field: field.name)
def test_every_setting_of_the_yaml_file(field, tmp_path):
    file = tmp_path / "run.yaml"
    for value in [*odd_values(field), *YAML]:
        text = f"model: tiny\ndata: absent.json\n{field.name}: {value}\n"
        if field.name in ("model", "data"):
            text = f"{field.name}: {value}\n"
        file.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
        assert not (found := complaint(["train", "--config", str(file)])), (text, found)


@pytest.mark.parametrize("value", ODD)
def test_odd_names_of_the_yaml_file_and_odd_options(value):
    for words in (["train", "--config", value], [value], ["train", "--", value]):
        result = CliRunner().invoke(app, words)
        assert isinstance(result.exception, (SystemExit, type(None))), (words, result.exception)
        assert "Traceback" not in result.output


def test_all_commands_are_tried():
    assert set(GIVEN) == {
        command.name or command.callback.__name__ for command in app.registered_commands
    }
    for kind, _ in GIVEN.values():
        hints = typing.get_type_hints(kind)
        assert dataclasses.is_dataclass(kind)
        assert all(field.name in hints for field in declared(kind))
    assert Path("absent.json").exists() is False
