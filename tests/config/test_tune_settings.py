"""What `ptune tune` tries, and the trainings that it makes of its settings."""

from pathlib import Path

import pytest

from ptune.config.declaration import declared
from ptune.config.resolve import resolve
from ptune.config.settings import TrainSettings
from ptune.config.tune_settings import Choice, TuneSettings
from ptune.errors import ConfigError

GIVEN = {"data": ("a.json",), "eval_fraction": 0.1}


def settings(**flags):
    return resolve(TuneSettings, GIVEN | flags)


def test_options_are_those_of_train_but_for_what_is_tried():
    own, of_training = ({f.name for f in declared(kind)} for kind in (TuneSettings, TrainSettings))
    assert own - of_training == {"trials", "steps", "learning_rates", "lengths", "starts"}
    assert of_training - own == {
        *("learning_rate", "pre_seq_len", "max_steps", "epochs", "init_prefix", "init_merge"),
        *("early_stopping", "load_best", "resume", "fresh"),
        *("method", "lora_rank", "lora_alpha", "lora_dropout", "lora_target"),
        *("gpus", "processes"),
    }


def test_defaults():
    found = settings()
    assert found.rates == (0.002, 0.2)
    assert found.tried_lengths == (32, 64, 128)
    assert found.tried_starts == ("random",)
    assert settings(init_data=3, init_text="a").tried_starts == ("random", "data", "text")
    assert settings(init_data=3, starts="data").tried_starts == ("data",)


def test_a_trial():
    found = settings(init_data=3, init_text="a", steps=50, seed=7, shuffle=False)
    trial = found.trial(Choice(0.05, 64, "data"), Path("out"))
    assert (trial.learning_rate, trial.pre_seq_len, trial.max_steps) == (0.05, 64, 50)
    assert (trial.init_data, trial.init_text, trial.seed, trial.shuffle) == (3, None, 7, False)
    assert (trial.eval_steps, trial.output) == (10, Path("out"))
    assert "pre_seq_len" in trial.given
    trial = found.trial(Choice(0.05, 128, "random"), Path("out"))
    assert (trial.init_data, trial.init_text, trial.pre_seq_len) == (None, None, 128)
    assert "pre_seq_len" in trial.given  # the default, and asked for all the same
    assert settings(steps=3).trial(Choice(0.1, 8, "random"), Path("o")).eval_steps == 1
    assert settings(eval_steps=7).trial(Choice(0.1, 8, "random"), Path("o")).eval_steps == 7


def test_the_best_is_a_training_as_it_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    found = settings(
        init_text="a", init_data=2, model="m", shuffle=False, quantization_bit="4", output="out"
    )
    assert found.best(Choice(0.05, 32, "text")) == {
        "data": [str(tmp_path / "a.json")],
        "eval_fraction": 0.1,
        "init_text": "a",
        "learning_rate": 0.05,
        "model": str(tmp_path / "m"),
        "pre_seq_len": 32,
        "quantization_bit": "4",
        "shuffle": False,
    }


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"learning_rates": "0.1"}, "learning_rates '0.1' is not LOW:HIGH; write e.g. 0.002:0.2"),
        ({"learning_rates": "a:b"}, "learning_rates 'a:b' is not LOW:HIGH; write e.g. 0.002:0.2"),
        (
            {"learning_rates": "0:0.1"},
            "learning_rates '0:0.1' is out of range; use more than 0 and at most 100",
        ),
        (
            {"learning_rates": "0.1:nan"},
            "learning_rates '0.1:nan' is out of range; use more than 0 and at most 100",
        ),
        (
            {"learning_rates": "0.1:0.1"},
            "learning_rates '0.1:0.1' holds nothing; write the lower one first",
        ),
        (
            {"lengths": "8,b"},
            "lengths '8,b' are not numbers with commas between them; write e.g. 32,64,128",
        ),
        ({"lengths": "8,0"}, "lengths '8,0' are out of range; use 1 to 10,000"),
        ({"lengths": "8,08"}, "lengths '8,08' names one twice; leave one of them out"),
        ({"starts": "random,prefix"}, "starts 'prefix' is unknown; use random, data, text"),
        (
            {"starts": "random,random"},
            "starts 'random,random' names one twice; leave one of them out",
        ),
        ({"starts": "data"}, "starts 'data' has nothing to begin as; pass --init-data N, too"),
        ({"starts": "text"}, "starts 'text' has nothing to begin as; pass --init-text TEXT, too"),
        (
            {"starts": "random", "init_data": 3},
            "--init-data has no effect without data in --starts; leave one of them out",
        ),
        (
            {"starts": "random", "init_text_file": "a.txt"},
            "--init-text-file has no effect without text in --starts; leave one of them out",
        ),
        (
            {"init_text": "a", "init_text_file": "a.txt"},
            "--init-text and --init-text-file both say what the prefix begins as; leave one out",
        ),
        (
            {"init_data": 3, "prefix_projection": True},
            "--init-data does not go with --prefix-projection, whose MLP computes the keys and "
            "values: it cannot begin as given ones; leave one of them out",
        ),
        (
            {"steps": 10, "warmup_steps": 10},
            "warmup_steps 10 leaves no step of 10 at the peak rate; use fewer, or more --steps",
        ),
        (
            {"eval_fraction": None},
            "trials are compared by eval_loss, and there is no development data; pass "
            "--eval-data FILE or --eval-fraction 0.1",
        ),
    ],
)
def test_errors(flags, said):
    with pytest.raises(ConfigError) as refused:
        settings(**flags)
    assert str(refused.value) == said
