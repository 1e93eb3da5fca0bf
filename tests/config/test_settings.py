"""The settings of every command and what is wrong with their values."""

import dataclasses
from pathlib import Path

import pytest

from ptune.base.folder import Generation
from ptune.config.declaration import declared
from ptune.config.resolve import resolve
from ptune.config.settings import (
    ChatSettings,
    DoctorSettings,
    EstimateSettings,
    EvalSettings,
    MergeSettings,
    PreviewSettings,
    ScoreSettings,
    TrainSettings,
)
from ptune.config.shared_settings import HEADINGS, PROMPT_FORMATS, QUANTIZATION_BACKENDS
from ptune.errors import ConfigError
from ptune.quantization.backends.registry import BACKENDS

REQUIRED = {
    TrainSettings: {"data": (Path("a.json"),)},
    EvalSettings: {"model": "tiny"},
    ChatSettings: {"model": "tiny"},
    MergeSettings: {"checkpoint": Path("in"), "output": Path("out")},
    PreviewSettings: {"data": (Path("a.json"),)},
    ScoreSettings: {"file": Path("a.jsonl")},
    EstimateSettings: {},
    DoctorSettings: {},
}
KINDS = tuple(REQUIRED)
DATA = REQUIRED[TrainSettings]


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_has_a_default_and_a_help_text(kind):
    resolve(kind, REQUIRED[kind])
    shorts = [field.metadata["short"] for field in declared(kind)]
    given = [short for short in shorts if short]
    assert len(given) == len(set(given))
    for field in declared(kind):
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


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in (EstimateSettings, ScoreSettings)]
)
def test_unknown_prompt_format(kind):
    assert tuple(generation.value for generation in Generation) == PROMPT_FORMATS
    for name in (*PROMPT_FORMATS, None):
        assert resolve(kind, REQUIRED[kind] | {"prompt_format": name})
    with pytest.raises(ConfigError, match="prompt_format 'glm' is unknown; use one of chatglm, ch"):
        resolve(kind, REQUIRED[kind] | {"prompt_format": "glm"})


MISSING_MODEL = r"^no model is given; pass --checkpoint DIR \(a trained prefix\) or --model"


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (TrainSettings, {"data": ()}, "--data is missing; pass the training file"),
        (PreviewSettings, {"data": ()}, "--data is missing; pass the file to look at"),
        (EvalSettings, {"model": None}, MISSING_MODEL),
        (ChatSettings, {"model": None}, MISSING_MODEL),
        (MergeSettings, {"checkpoint": None}, "--checkpoint is missing; pass --checkpoint DIR"),
        (MergeSettings, {"output": None}, "--output is missing; pass --checkpoint DIR --output"),
        (
            MergeSettings,
            {"format": "gguf"},
            "format 'gguf' is unknown; use one of safetensors, bin",
        ),
        *(
            (MergeSettings, {"max_shard_size": size}, f"max_shard_size '{size}' is not a size; wri")
            for size in ("2", "0GB", "2 apples", "-1GB", "1e9GB", "9" * 20 + "GB", "0.5XB")
        ),
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
            for value in ("Auto", "4.5")
        ),
        *(
            (TrainSettings, {"micro_batch_size": value}, "16 is not a multiple of micro_batch_size")
            for value in ("0", "-2", "32", "9" * 200)
        ),
        (
            TrainSettings,
            {"resume": True, "fresh": True},
            "--resume has no effect with --fresh; leave one of them out",
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
                {"dtype": "half"},
                "dtype 'half' is unknown; use one of float32, float16, bfloat",
            )
            for kind in (TrainSettings, EvalSettings)
        ),
        *(
            (
                kind,
                {"quantization_backend": "cuda"},
                "quantization_backend 'cuda' is unknown; use one of nvrtc, triton, torch, cpm",
            )
            for kind in (TrainSettings, EvalSettings, ChatSettings)
        ),
        (
            ChatSettings,
            {"temperature": 0.0},
            "temperature 0.0 is out of range; use 0.01 to 100, or --no-do-sample in its place for",
        ),
        (
            EvalSettings,
            {"temperature": 0.0, "do_sample": True},
            "temperature 0.0 is out of range; use 0.01 to 100, or neither it nor --do-sample for",
        ),
    ],
)
def test_values_that_make_no_sense(kind, values, message):
    given = {k: v for k, v in (REQUIRED[kind] | values).items() if v is not None}
    with pytest.raises(ConfigError, match=message):
        resolve(kind, given)


NUMBERS = [
    (kind, field)
    for kind in KINDS
    for field in declared(kind)
    if field.metadata["within"] is not None
]


@pytest.mark.parametrize(
    ("kind", "field"), NUMBERS, ids=[f"{kind.__name__}-{field.name}" for kind, field in NUMBERS]
)
def test_numbers_have_bounds_and_nothing_beyond_them_passes(kind, field):
    within = field.metadata["within"]
    for bound in (within.least, within.most, within.above, within.below):
        assert bound is None or bound == bound
    lowest = within.least if within.least is not None else within.above
    highest = within.most if within.most is not None else within.below
    assert lowest is not None and highest is not None
    assert field.default is None or field.default in within
    outside = [lowest - 1, highest + 1, float("nan"), float("inf"), float("-inf"), 10**400]
    for value in outside:
        message = rf"^{field.name} .* is out of range; use [^;]+$"
        with pytest.raises(ConfigError, match=message) as caught:
            kind(**REQUIRED[kind] | {field.name: value})
        assert len(str(caught.value)) < 200


def test_every_number_has_a_range():
    for kind in KINDS:
        for field in declared(kind):
            if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
                assert field.metadata["within"] is not None, field.name


def test_what_a_setting_needs_or_excludes_is_one():
    for kind in KINDS:
        known = {field.name: field.metadata["choices"] for field in declared(kind)}
        for field in declared(kind):
            for other in (field.metadata["needs"], field.metadata["excludes"]):
                name, *choice = other if isinstance(other, tuple) else [other]
                assert name is None or name in known, field.name
                assert not choice or choice[0] in known[name], field.name


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        *(
            (EvalSettings, {name: value}, f"--{flag} has no effect without --do-sample; pass that")
            for name, flag, value in (
                ("top_p", "top-p", 0.7),  # the default, but asked for
                ("temperature", "temperature", 0.5),
                ("seed", "seed", 0),
            )
        ),
        *(
            (
                ChatSettings,
                {name: value, "do_sample": False},
                f"--{flag} has no effect with --no-do-sample; leave one of them out",
            )
            for name, flag, value in (
                ("top_p", "top-p", 0.7),
                ("temperature", "temperature", 0.5),
                ("seed", "seed", 0),
            )
        ),
        *(
            (TrainSettings, {name: value}, f"--{name.replace('_', '-')} has no effect without dev")
            for name, value in (("eval_steps", 5), ("early_stopping", 5), ("load_best", True))
        ),
        (PreviewSettings, {"records": 3, "json": True}, "--records has no effect with --json; le"),
    ],
)
def test_settings_without_an_effect(kind, values, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        resolve(kind, REQUIRED[kind] | values)


def test_settings_with_an_effect():
    resolve(EvalSettings, REQUIRED[EvalSettings] | {"do_sample": True, "top_p": 0.5, "seed": 1})
    resolve(ChatSettings, REQUIRED[ChatSettings] | {"top_p": 0.5, "seed": 1})
    resolve(TrainSettings, DATA | {"eval_steps": 5, "eval_data": (Path("b"),)})
    resolve(TrainSettings, DATA | {"load_best": True, "eval_fraction": 0.5})
    resolve(TrainSettings, DATA | {"resume": True, "fresh": False})


def test_backends_are_those_there_are():
    assert QUANTIZATION_BACKENDS == BACKENDS
