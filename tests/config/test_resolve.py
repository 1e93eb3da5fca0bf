"""Settings from defaults, YAML and flags: precedence, types, and every complaint."""

from pathlib import Path

import pytest

from ptune.config.resolve import check_recorded, resolve
from ptune.config.settings import TrainSettings
from ptune.errors import ConfigError
from ptune.training.output import settings_to_json

DATA = {"data": (Path("a.json"),)}


@pytest.fixture
def yaml(tmp_path):
    def write(text):
        file = tmp_path / "train.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


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


@pytest.mark.parametrize(
    ("given", "expected"), [(None, None), ("auto", None), (8, 8), ("8", 8), (16, 16)]
)
def test_micro_batch(given, expected, yaml):
    flags = DATA | {"batch_size": 16, "micro_batch_size": given}
    assert resolve(TrainSettings, flags).micro_batch == expected
    lines = "" if given is None else f"micro-batch-size: {given}\n"
    file = yaml(f"batch_size: 16\n{lines}")
    assert resolve(TrainSettings, DATA, file).micro_batch == expected


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("quantization_bit", 4, "quantization_bit 4 in its settings"),
        ("quantization_bit", "5", "quantization_bit '5' is unknown"),
        ("max_source_length", "64", "max_source_length '64' in its settings"),
        ("max_source_length", -64, "max_source_length -64 leaves no room for text"),
        ("max_target_length", True, "max_target_length True in its settings"),
        ("eval_data", "dev.json", "eval_data 'dev.json' in its settings"),
        ("eval_data", [1], r"eval_data \[1\] in its settings"),
        ("truncation", "none", "truncation 'none' is unknown"),
        ("prompt_column", 1, "prompt_column 1 in its settings"),
        ("learning_rate", -1, "learning_rate -1 is not positive"),
        ("micro_batch_size", {}, "micro_batch_size {} in its settings"),
        ("data", [], "--data is missing"),
    ],
)
def test_recorded_setting_that_no_training_has(name, value, said):
    with pytest.raises(ValueError, match=rf"^{said}$"):
        check_recorded({name: value})


def test_recorded_settings_of_a_training():
    """As they are written, those of another version left out and added."""
    settings = TrainSettings(**DATA, learning_rate=1, output=Path("out"), epochs=2)
    written = settings_to_json(settings)
    check_recorded(written)
    del written["seed"]
    check_recorded(written | {"of_later": [None]})
    check_recorded({})
