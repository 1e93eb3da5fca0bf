"""A text distilled into a prefix: the teacher, the loss, and whole runs."""

import dataclasses
import json

import pytest
import torch
from fixtures.checkpoints import small_case
from fixtures.runs import Recorder, log_lines

from ptune import load_model
from ptune.errors import ConfigError, DataError
from ptune.training.distillation import Teacher
from ptune.training.train import train

TEXT = list(range(20, 45))
QUESTION = [61, 17, 201, 44, 99, 150]
SAID = "这件衣服是羊毛的，很暖和，有黑白两色。"


@pytest.mark.parametrize("generation", [2, 3, 4])
def test_the_teacher_is_the_base_with_the_text(generation, model_folder):
    model = load_model(model_folder(small_case(generation)), device="cpu")
    inputs = {"input_ids": torch.tensor([QUESTION]), "attention_mask": torch.ones(1, 6).long()}
    found = Teacher(model, TEXT).hidden_states(inputs | {"labels": None})
    with torch.inference_mode():
        whole = model.base_model(input_ids=torch.tensor([TEXT + QUESTION])).last_hidden_state
    torch.testing.assert_close(found, whole[:, len(TEXT) :], atol=1e-4, rtol=0)
    assert not found.requires_grad and model.base_model.prefix_encoder is None


@pytest.fixture
def distilled(settings, tmp_path):
    """Settings of a run that distils a text."""
    file = tmp_path / "text.txt"
    file.write_text(SAID, encoding="utf-8")

    def make(generation=3, **changes):
        values = {"distill_text": file, "logging_steps": 1, "prefix_dropout": 0.0, "max_steps": 6}
        return settings(generation, **values | {"max_source_length": 16} | changes)

    make.file = file
    return make


def losses(asked):
    train(asked, Recorder())
    lines = log_lines(asked.output)
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("generation", [1, 2, 3, 4])
def test_a_prefix_that_is_the_text_has_nothing_to_learn(generation, distilled):
    # 128 is what nobody has asked for: the prefix is as long as the text.
    whole = distilled(generation, init_text_file=distilled.file, pre_seq_len=128, max_steps=1)
    assert losses(whole)[0] < 1e-5


def test_what_is_learnt_is_what_the_teacher_says(distilled):
    found = losses(distilled(max_steps=80, pre_seq_len=20, learning_rate=0.5))
    assert 0 < min(found[-5:]) < found[0] / 3


def test_the_text_is_recorded_and_compared(distilled):
    asked = distilled(max_steps=2)
    metadata = json.loads(
        (train(asked, Recorder()).output / "ptune_config.json").read_text("utf-8")
    )
    assert len(metadata["inputs"]["distilled"]) == 64
    assert metadata["settings"]["distill_text"] == str(distilled.file)
    distilled.file.write_text(SAID + "有口袋。", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^distilled differs from that of .*; use the same, or"):
        train(dataclasses.replace(asked, max_steps=4), Recorder())


def test_refused(distilled, tmp_path):
    distilled.file.write_text("裙" * 2048, encoding="utf-8")
    message = r"^--distill-text .* tokens, and with records of \d+ the model would have to see more"
    with pytest.raises(ConfigError, match=message):
        train(distilled(), Recorder())
    with pytest.raises(DataError, match=r"^--distill-text .*absent does not exist; check the path"):
        train(distilled(distill_text=tmp_path / "absent"), Recorder())
