"""Settings: precedence, YAML, and every complaint."""

import dataclasses
from pathlib import Path

import pytest

from ptune.config import (
    ChatSettings,
    EvalSettings,
    MergeSettings,
    PreviewSettings,
    TrainSettings,
    resolve,
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


@pytest.fixture
def yaml(tmp_path):
    def write(text):
        file = tmp_path / "train.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_has_a_default_and_a_help_text(kind):
    resolve(kind, REQUIRED[kind])
    shorts = [field.metadata["short"] for field in dataclasses.fields(kind)]
    given = [short for short in shorts if short]
    assert len(given) == len(set(given))
    for field in dataclasses.fields(kind):
        assert field.default is not dataclasses.MISSING, field.name
        assert field.metadata["help"].endswith((".", "`")), field.name


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


def test_precedence(yaml):
    file = yaml("data: b.json\npre_seq_len: 16\nbatch_size: 8\nseed: 7\n")
    settings = resolve(TrainSettings, {"batch_size": 4, "seed": None, "shuffle": False}, file)
    assert settings.data == (Path("b.json"),)
    assert (settings.pre_seq_len, settings.batch_size, settings.seed) == (16, 4, 7)
    assert settings.shuffle is False and settings.max_steps == 3000


def test_flag_of_false_or_zero_is_given(yaml):
    file = yaml("data: b.json\nshuffle: true\nwarmup_steps: 5\n")
    settings = resolve(TrainSettings, {"shuffle": False, "warmup_steps": 0}, file)
    assert settings.shuffle is False and settings.warmup_steps == 0


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("learning_rate: 2e-2", "learning_rate", 0.02),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("learning-rate: 0.5", "learning_rate", 0.5),
        ("max_steps: 1e3", "max_steps", 1000),
        ("max_steps: '20'", "max_steps", 20),
        ("max_steps: 20.0", "max_steps", 20),
        ("epochs: 3", "epochs", 3.0),
        ("epochs: null", "epochs", None),
        ("epochs:", "epochs", None),
        ("dtype: float16", "dtype", "float16"),
        ("output: out/run", "output", Path("out/run")),
        ("data: [a.json, 数据.json]", "data", (Path("a.json"), Path("数据.json"))),
        ("data: a.json", "data", (Path("a.json"),)),
        ("prefix_projection: yes", "prefix_projection", True),
        ("model: 123", "model", "123"),
        ("report_to: none", "report_to", "none"),
    ],
)
def test_yaml_values(yaml, text, name, value):
    settings = resolve(TrainSettings, {} if name == "data" else DATA, yaml(text))
    found = getattr(settings, name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "max_steps: many",
        "max_steps: 2.5",
        "max_steps: true",
        "max_steps: [1]",
        "max_steps: .inf",
        "max_steps: .nan",
        "learning_rate: fast",
        "learning_rate: false",
        "learning_rate: {a: 1}",
        "shuffle: 1",
        "shuffle: 'yes'",
        "dtype: true",
        "dtype: [float16]",
        "model: [a, b]",
        "output: 5",
        "output: [a]",
        "data: {a: b}",
        "report_to: no",
    ],
)
def test_yaml_value_of_a_wrong_type(yaml, text):
    name = text.split(":")[0]
    message = rf"^{name} .* in .*train.yaml is not of type \w+; write e.g. {name}: \S+$"
    with pytest.raises(ConfigError, match=message):
        resolve(TrainSettings, {} if name == "data" else DATA, yaml(text))


@pytest.mark.parametrize("text", ["max_steps: null", "seed:", "model: ~", "data:", "data: [null]"])
def test_yaml_setting_without_a_value(yaml, text):
    name = text.split(":")[0]
    message = rf"^{name} in .*train.yaml has no value; write one, or leave the line out$"
    with pytest.raises(ConfigError, match=message):
        resolve(TrainSettings, {} if name == "data" else DATA, yaml(text))


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("learning_rat", "learning_rate"),
        ("pre-seq-length", "pre_seq_len"),
        ("bach_size", "batch_size"),
        ("per_device_train_batch_size", "micro_batch_size"),
        ("zzzz", ""),
        ("5", ""),
    ],
)
def test_unknown_key_names_the_nearest(yaml, key, nearest):
    message = rf"{key}'? in .*train.yaml is no setting; did you mean '{nearest}"
    with pytest.raises(ConfigError, match=message):
        resolve(TrainSettings, DATA, yaml(f"{key}: 1\n"))


def test_setting_of_another_command(yaml):
    with pytest.raises(ConfigError, match=r"'top_p' in .* is no setting"):
        resolve(TrainSettings, DATA, yaml("top_p: 0.5"))


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "just text", "5"])
def test_yaml_without_settings(yaml, text):
    with pytest.raises(
        ConfigError, match=r"train.yaml holds no settings; write lines of `name: va"
    ):
        resolve(TrainSettings, DATA, yaml(text))


def test_yaml_that_cannot_be_read(yaml, tmp_path):
    files = [yaml("a: [1"), tmp_path / "absent.yaml", tmp_path]
    for file in files:
        with pytest.raises(ConfigError, match=r"config file .* cannot be read") as caught:
            resolve(TrainSettings, DATA, file)
        assert str(caught.value).endswith("; pass a YAML file")
        assert "\n" not in str(caught.value)
    bad = yaml("")
    bad.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve(TrainSettings, DATA, bad)


def test_yaml_runs_nothing(yaml, tmp_path):
    file = yaml(f"data: !!python/object/apply:os.mkdir ['{tmp_path}/ran']")
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve(TrainSettings, {}, file)
    assert not (tmp_path / "ran").exists()


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


@pytest.mark.parametrize(
    ("given", "expected"), [(None, None), ("auto", None), (8, 8), ("8", 8), (16, 16)]
)
def test_micro_batch(given, expected, yaml):
    flags = DATA | {"batch_size": 16, "micro_batch_size": given}
    assert resolve(TrainSettings, flags).micro_batch == expected
    lines = "" if given is None else f"micro-batch-size: {given}\n"
    file = yaml(f"batch_size: 16\n{lines}")
    assert resolve(TrainSettings, DATA, file).micro_batch == expected
