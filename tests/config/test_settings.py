"""The settings of every command and what is wrong with their values."""

import dataclasses
from pathlib import Path

import pytest

from ptune.config.resolve import resolve
from ptune.config.settings import (
    HEADINGS,
    ChatSettings,
    DoctorSettings,
    EvalSettings,
    MergeSettings,
    PreviewSettings,
    TrainSettings,
)
from ptune.errors import ConfigError

KINDS = (TrainSettings, EvalSettings, ChatSettings, MergeSettings, PreviewSettings)
REQUIRED = {
    TrainSettings: {"data": (Path("a.json"),)},
    EvalSettings: {"model": "tiny"},
    ChatSettings: {"model": "tiny"},
    MergeSettings: {"checkpoint": Path("in"), "output": Path("out")},
    PreviewSettings: {"data": (Path("a.json"),)},
}
DATA = REQUIRED[TrainSettings]


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_has_a_default_and_a_help_text(kind):
    resolve(kind, REQUIRED[kind])
    shorts = [field.metadata["short"] for field in dataclasses.fields(kind)]
    given = [short for short in shorts if short]
    assert len(given) == len(set(given))
    for field in dataclasses.fields(kind):
        assert field.default is not dataclasses.MISSING, field.name
        assert field.metadata["help"].endswith((".", "`")), field.name
        assert field.metadata["heading"] in HEADINGS, field.name


def test_defaults_are_those_of_the_original():
    settings = resolve(TrainSettings, DATA)
    expected = {
        "pre_seq_len": 128,
        "learning_rate": 2e-2,
        "max_steps": 3000,
        "batch_size": 16,
        "max_source_length": 64,
        "save_steps": 1000,
        "logging_steps": 10,
        "prefix_dropout": 0.1,
        "model": "THUDM/chatglm-6b",
    }
    assert expected.items() <= dataclasses.asdict(settings).items()


@pytest.mark.parametrize("kind", [*KINDS, DoctorSettings])
def test_unknown_prompt_format(kind):
    for name in ("chatglm", "chatglm2", "chatglm3", None):
        assert resolve(kind, REQUIRED.get(kind, {}) | {"prompt_format": name})
    with pytest.raises(ConfigError, match="prompt_format 'glm' is unknown; use one of chatglm, ch"):
        resolve(kind, REQUIRED.get(kind, {}) | {"prompt_format": "glm"})


MISSING_MODEL = r"pass --checkpoint DIR \(a trained prefix\) or --model DIR"


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (TrainSettings, {"data": ()}, "--data is missing; pass the training file"),
        (PreviewSettings, {"data": ()}, "--data is missing; pass the file to look at"),
        (EvalSettings, {"model": None}, MISSING_MODEL),
        (ChatSettings, {"model": None}, MISSING_MODEL),
        (MergeSettings, {"checkpoint": Path()}, "--checkpoint is missing; pass --checkpoint DIR"),
        (MergeSettings, {"output": Path()}, "--output is missing; pass --checkpoint DIR --output"),
        (MergeSettings, {"format": "gguf"}, "format 'gguf' is unknown; use safetensors or bin"),
        (TrainSettings, {"prefix_dropout": 1.0}, r"prefix_dropout 1.0 is not in \[0, 1\); use 0.1"),
        (TrainSettings, {"prefix_dropout": -0.1}, "prefix_dropout -0.1 is not in"),
        (TrainSettings, {"warmup_steps": -1}, "warmup_steps -1 is negative; use 0 or more"),
        (
            TrainSettings,
            {"batch_size": 6, "micro_batch_size": 4},
            "batch_size 6 is not a multiple of micro_batch_size 4; use a divisor of 6",
        ),
        *(
            (
                TrainSettings,
                {"micro_batch_size": value},
                f"micro_batch_size {value!r} is neither auto nor a number; use auto, or a divisor "
                "of 16",
            )
            for value in ("Auto", "4.5", "")
        ),
        (
            TrainSettings,
            {"init_prefix": Path("a"), "resume": True},
            "--init-prefix and --resume exclude each other",
        ),
        *(
            (
                kind,
                {"truncation": "left"},
                "truncation 'left' is unknown; use one of turns, original",
            )
            for kind in (TrainSettings, EvalSettings, PreviewSettings)
        ),
        *(
            (
                kind,
                {"max_source_length": 3},
                "max_source_length 3 leaves no room for text; use 4 or",
            )
            for kind in (TrainSettings, EvalSettings, PreviewSettings)
        ),
        *(
            (kind, {"max_target_length": 0}, "max_target_length 0 leaves no room for text")
            for kind in (TrainSettings, PreviewSettings)
        ),
        *(
            (
                kind,
                {"dtype": "half"},
                "dtype 'half' is unknown; use one of float32, float16, bfloat",
            )
            for kind in (TrainSettings, EvalSettings)
        ),
        *(
            (kind, {"top_p": value}, rf"top_p {value} is not in \(0, 1\]; use 0.7")
            for kind in (EvalSettings, ChatSettings)
            for value in (0, 1.5)
        ),
        *(
            (kind, {"temperature": 0}, "temperature 0 is not positive; use --no-do-sample for the")
            for kind in (EvalSettings, ChatSettings)
        ),
        *(
            (TrainSettings, {name: value}, f"{name} {value} is not positive; use a larger value")
            for name in (
                *("pre_seq_len", "learning_rate", "max_steps", "batch_size", "save_steps"),
                *("save_total_limit", "logging_steps", "epochs", "eval_steps", "micro_batch_size"),
            )
            for value in (0, -2)
        ),
        *(
            (EvalSettings, {name: 0}, f"{name} 0 is not positive; use a larger value")
            for name in ("batch_size", "max_new_tokens", "max_samples")
        ),
        (ChatSettings, {"max_new_tokens": -1}, "max_new_tokens -1 is not positive"),
        (PreviewSettings, {"records": 0}, "records 0 is not positive"),
        (TrainSettings, {"learning_rate": float("nan")}, "learning_rate nan is not positive"),
        (EvalSettings, {"temperature": float("nan")}, "temperature nan is not positive"),
    ],
)
def test_values_that_make_no_sense(kind, values, message):
    given = {k: v for k, v in (REQUIRED[kind] | values).items() if v is not None}
    with pytest.raises(ConfigError, match=message):
        resolve(kind, given)
