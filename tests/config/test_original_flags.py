"""Flags of the original scripts and what is said about them, in every command."""

import re

import pytest
from typer.testing import CliRunner

from ptune.cli import app
from ptune.config.declaration import declared
from ptune.config.original_flags import COUNTERPARTS, advice
from ptune.config.settings import (
    ChatSettings,
    EvalSettings,
    MergeSettings,
    PreviewSettings,
    TrainSettings,
)
from ptune.config.tune_settings import TuneSettings

SETTINGS = {
    "train": TrainSettings,
    "eval": EvalSettings,
    "chat": ChatSettings,
    "merge": MergeSettings,
    "preview": PreviewSettings,
    "tune": TuneSettings,
}
NAMES = {command: [f.name for f in declared(kind)] for command, kind in SETTINGS.items()}
# Of the original's scripts and what people add to them.
SCRIPTS = """
    do_train do_predict do_eval train_file validation_file test_file overwrite_cache prompt_column
    response_column history_column model_name_or_path ptuning_checkpoint output_dir
    overwrite_output_dir max_source_length max_target_length per_device_train_batch_size
    per_device_eval_batch_size gradient_accumulation_steps predict_with_generate max_steps
    logging_steps save_steps learning_rate pre_seq_len prefix_projection quantization_bit
    preprocessing_num_workers fp16 fp16_full_eval deepspeed num_train_epochs resume_from_checkpoint
    evaluation_strategy eval_steps save_total_limit report_to cache_dir lang dataset_name
    dataset_config_name val_max_target_length pad_to_max_length max_train_samples max_eval_samples
    max_predict_samples num_beams ignore_pad_token_for_loss source_prefix forced_bos_token
    config_name tokenizer_name use_fast_tokenizer model_revision use_auth_token
    resize_position_embeddings seed warmup_steps
"""


@pytest.mark.parametrize("name", SCRIPTS.split())
def test_every_flag_of_the_scripts_is_one_here_or_has_an_answer(name):
    assert name in NAMES["train"] or advice(name, "train", NAMES["train"])


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_what_is_advised_exists(name):
    counterpart = COUNTERPARTS[name]
    assert bool(counterpart.commands) != bool(counterpart.note)
    of_tune = {"tune": counterpart.tune} if counterpart.tune else {}
    for command, text in (counterpart.commands | of_tune).items():
        for flag in re.findall(r"--([a-z-]+)", text):
            assert flag.replace("-", "_") in NAMES[command], (command, flag)
        assert name not in NAMES[command]


@pytest.mark.parametrize(
    ("command", "name", "said"),
    [
        ("train", "train_file", "use --data FILE"),
        ("train", "validation_file", "use --eval-data FILE"),
        ("eval", "validation_file", "use --data FILE"),
        ("eval", "test_file", "use --data FILE"),
        ("train", "test_file", "`ptune eval` has --data FILE for it"),
        ("train", "ptuning_checkpoint", "use --init-prefix DIR"),
        ("chat", "ptuning_checkpoint", "use --checkpoint DIR"),
        ("merge", "ptuning_checkpoint", "use --checkpoint DIR"),
        ("preview", "train_file", "use --data FILE"),
        ("merge", "output_dir", "use --output DIR"),
        ("chat", "output_dir", "`ptune train` has --output DIR for it"),
        ("eval", "pre_seq_len", "leave it out: it is read from the checkpoint"),
        ("tune", "pre_seq_len", "use --lengths A,B,C"),
        ("tune", "train_file", "use --data FILE"),
        ("train", "num_beams", "leave it out: answers are greedy or sampled"),
        ("eval", "per_device_eval_batch_size", "use --batch-size N"),
        ("train", "nonsense", None),
    ],
)
def test_advice(command, name, said):
    assert advice(name, command, NAMES[command]) == said


def test_advice_for_yaml():
    said = advice("train_file", "train", NAMES["train"], yaml=True)
    assert said == "use data"
    said = advice("per_device_train_batch_size", "train", NAMES["train"], yaml=True)
    assert said == "use micro_batch_size, and batch_size for the records of a whole step"


@pytest.mark.parametrize("command", ["train", "eval", "chat", "merge", "preview", "score"])
@pytest.mark.parametrize("flag", ["--train_file", "--train-file", "--train_file=x"])
def test_on_the_command_line(command, flag):
    result = CliRunner().invoke(app, [command, flag, "x"])
    typed = flag.partition("=")[0]
    assert result.exit_code == 1
    has_data = command in ("train", "preview")
    said = "use --data FILE" if has_data else "`ptune train` has --data FILE for it"
    assert result.stderr == f"error: {typed} is the original's; {said}\n"
    assert result.stdout == ""


def test_with_a_traceback():
    result = CliRunner().invoke(app, ["--debug", "train", "--train_file", "x"])
    assert "is the original's" in str(result.exception)


def test_the_same_name_with_another_line_is_the_same_option(tmp_path):
    words = ["preview", "--data", str(tmp_path / "absent"), "--max_source_length", "3"]
    result = CliRunner().invoke(app, words)
    assert result.stderr.startswith("error: max_source_length 3 is out of range")
