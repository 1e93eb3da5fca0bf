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
        ("seed: 4294967295", "seed", 4294967295),
        ("seed: ' 4294967295 '", "seed", 4294967295),
        ("seed: 010", "seed", 10),
        ("seed: !!int 010", "seed", 10),
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
        ("output: 010", "output", Path("010")),
        ("micro_batch_size: 08", "micro_batch", 8),
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
        "max_steps: 1_0",
        "max_steps: '1_0'",
        "max_steps: 0x10",
        "max_steps: 0b1",
        "max_steps: 1:30",
        "learning_rate: 1_0.5",
        "learning_rate: 1:30.5",
        "learning_rate: .inf",
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
        "output: [a]",
        "data: {a: b}",
        "report_to: no",
        "model: 2024-01-01",
        "model: !!binary aGVsbG8=",
        "model: !!set {a, b}",
        "output: 2024-01-01",
        "seed: 1e400",
        "seed: '12abc'",
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
    ],
)
def test_unknown_key_names_the_nearest(yaml, key, nearest):
    message = rf"{key}'? in .*train.yaml is no setting; did you mean '{nearest}"
    with pytest.raises(ConfigError, match=message):
        resolve(TrainSettings, DATA, yaml(f"{key}: 1\n"))


@pytest.mark.parametrize("key", ["zzzz", "5", "[a, b]"])
def test_unknown_key_that_is_near_none(yaml, key):
    with pytest.raises(ConfigError, match=r" in .* is no setting; see `ptune train --help` for"):
        resolve(TrainSettings, DATA, yaml(f"? {key}\n: 1\n"))


def test_setting_of_another_command(yaml):
    with pytest.raises(ConfigError, match=r"'top_p' in .* is no setting"):
        resolve(TrainSettings, DATA, yaml("top_p: 0.5"))


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "just text", "5"])
def test_yaml_without_settings(yaml, text):
    with pytest.raises(
        ConfigError, match=r"train.yaml holds no settings; write lines of `name: va"
    ):
        resolve(TrainSettings, DATA, yaml(text))


ODD_YAML = [
    "a: [1",
    "? [a, b]\n: 1\n? {a: b}\n: *nowhere",
    "data: &a [*a]",
    "[" * 5000,
    "a: \x00",
]


@pytest.mark.parametrize("text", ODD_YAML, ids=range(len(ODD_YAML)))
def test_yaml_that_is_broken(yaml, text):
    with pytest.raises(ConfigError, match=r"config file .* cannot be read") as caught:
        resolve(TrainSettings, DATA, yaml(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: [1\nc: d: e", r"line 3, column 2: while parsing a flow sequence, expected ','"),
        ("a: 1\nb: c: d", r"line 2, column 5: mapping values are not allowed here"),
        ("data: !!python/name:os.x ''", r"line 1, column 7: could not determine a constructor"),
        ("[" * 5000, r"it is nested too deeply"),
    ],
)
def test_yaml_complaint_names_the_place_without_a_picture(yaml, text, reason):
    with pytest.raises(ConfigError, match=rf" cannot be read \({reason}[^^\n]*\); pass") as caught:
        resolve(TrainSettings, DATA, yaml(text))
    assert len(str(caught.value)) < 300


def test_yaml_value_that_is_endless_is_shown_short(yaml):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    text = "\n".join(f"  {line}" for line in lines)
    with pytest.raises(ConfigError, match=r"seed {.* is not of type int") as caught:
        resolve(TrainSettings, DATA, yaml(f"seed:\n{text}"))
    assert len(str(caught.value)) < 500


def test_yaml_setting_that_stands_twice(yaml):
    for text in ("seed: 1\nseed: 2", "max_steps: 1\nmax-steps: 2"):
        with pytest.raises(ConfigError, match=r"^\w+ stands twice in .*; leave one of the lines"):
            resolve(TrainSettings, DATA, yaml(text))


def test_yaml_anchors_and_a_byte_order_mark(yaml):
    file = yaml("\ufeffmax_steps: &n 7\nsave_steps: *n\n<<: {seed: 3}")
    settings = resolve(TrainSettings, DATA, file)
    assert (settings.max_steps, settings.save_steps, settings.seed) == (7, 7, 3)


def test_flag_of_the_original(yaml):
    cases = {
        "train_file": "use data",
        "per-device-train-batch-size": "use micro_batch_size, and batch_size for the records of a",
        "fp16": "use dtype float16",
        "num_beams": "leave it out: answers are greedy or sampled",
        "test_file": "`ptune eval` has --data FILE for it",
        "training_args": "there are no sections",
    }
    for key, advice in cases.items():
        with pytest.raises(ConfigError, match=f"'{key}' in .* is the original's; {advice}"):
            resolve(TrainSettings, DATA, yaml(f"{key}: 1"))


class TestPaths:
    def test_home_is_written_out_wherever_a_path_comes_in(self, yaml, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        file = yaml("output: ~/run\neval_data: [~/a.json, b.json]\nmodel: ~/models/glm")
        settings = resolve(TrainSettings, {"data": ("~/c.json",), "init_prefix": "~/p"}, file)
        assert settings.output == tmp_path / "run"
        assert settings.eval_data == (tmp_path / "a.json", Path("b.json"))
        assert settings.model == str(tmp_path / "models" / "glm")
        assert settings.data == (tmp_path / "c.json",)
        assert settings.init_prefix == (tmp_path / "p",)
        assert TrainSettings(data=(Path("~/c.json"),)).data == (tmp_path / "c.json",)
        elsewhere = resolve(TrainSettings, DATA, Path(f"~/{file.name}"))
        assert elsewhere.output == tmp_path / "run"

    def test_home_that_is_not_there(self):
        for name in ("output", "model"):
            message = rf"^{name} ~nobody-here/x begins with a home that is not there; write the"
            with pytest.raises(ConfigError, match=message):
                resolve(TrainSettings, DATA | {name: "~nobody-here/x"})

    @pytest.mark.parametrize("text", ["", "  "])
    def test_blank(self, text, yaml):
        message = rf"^output '{text}' is blank; name a file or folder$"
        with pytest.raises(ConfigError, match=message):
            resolve(TrainSettings, DATA | {"output": text})
        with pytest.raises(ConfigError, match=rf"^data '{text}' is blank"):
            resolve(TrainSettings, {"data": ("a.json", text)})
        with pytest.raises(ConfigError, match=rf"^output '{text}' in .*train.yaml is blank"):
            resolve(TrainSettings, DATA, yaml(f"output: '{text}'"))

    def test_here_is_a_folder(self):
        assert resolve(TrainSettings, DATA | {"output": "."}).output == Path()


class TestOneOfTwo:
    def test_both_given(self, yaml):
        message = "^--max-steps has no effect with --epochs; leave one of them out$"
        with pytest.raises(ConfigError, match=message):
            resolve(TrainSettings, DATA | {"max_steps": 3000, "epochs": 1.0})  # 3000: the default
        with pytest.raises(ConfigError, match=message):
            resolve(TrainSettings, DATA, yaml("max_steps: 5\nepochs: 1"))

    def test_flags_win(self, yaml):
        settings = resolve(TrainSettings, DATA | {"max_steps": 5}, yaml("epochs: 1"))
        assert (settings.max_steps, settings.epochs) == (5, None)
        settings = resolve(TrainSettings, DATA | {"epochs": 1.0}, yaml("max_steps: 5"))
        assert (settings.max_steps, settings.epochs) == (3000, 1.0)
        settings = resolve(TrainSettings, DATA | {"fresh": True}, yaml("resume: true"))
        assert (settings.fresh, settings.resume) == (True, False)
        settings = resolve(TrainSettings, DATA | {"fresh": False}, yaml("resume: true"))
        assert (settings.fresh, settings.resume) == (False, True)


def test_yaml_that_cannot_be_read(yaml, tmp_path):
    files = [yaml("a: [1"), tmp_path / "absent.yaml", tmp_path, Path("a\0b"), Path("a" * 5000)]
    for file in files:
        with pytest.raises(ConfigError, match=r"config file .* cannot be read") as caught:
            resolve(TrainSettings, DATA, file)
        assert str(caught.value).endswith("; pass a YAML file")
        assert "Errno" not in str(caught.value)
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
        ("max_source_length", -64, "max_source_length -64 is out of range"),
        ("max_target_length", True, "max_target_length True in its settings"),
        ("eval_data", "dev.json", "eval_data 'dev.json' in its settings"),
        ("eval_data", [1], r"eval_data \[1\] in its settings"),
        ("truncation", "none", "truncation 'none' is unknown"),
        ("prompt_column", 1, "prompt_column 1 in its settings"),
        ("learning_rate", -1, "learning_rate -1 is out of range"),
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
