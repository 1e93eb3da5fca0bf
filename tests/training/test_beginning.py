"""What a new prefix begins as: texts, records, lengths, and runs that go on."""

import dataclasses
import json

import pytest
import torch
from fixtures.runs import Recorder, prefix_of

from ptune import load_model, load_tokenizer
from ptune.base.folder import Generation, find_base_model
from ptune.config.settings import TrainSettings
from ptune.data.prompt import as_context, render_text
from ptune.errors import ConfigError, DataError
from ptune.models.text_prefix import text_states
from ptune.training.data import load_data
from ptune.training.train import train

KEY = "transformer.prefix_encoder.embedding.weight"
TEXT = "根据属性写一段文案。"


def first_prefix(asked):
    """The prefix before the first step that changes it."""
    recorder = Recorder()
    train(asked, recorder)
    return prefix_of(asked.output)[KEY], recorder


def of_ids(model, ids):
    states = text_states(load_model(model, device="cpu"), ids)
    return states.permute(3, 0, 1, 2, 4).reshape(len(ids), -1)


@pytest.fixture
def still(settings):
    """Settings of a run that changes next to nothing: one step at the smallest rate."""

    def make(generation=3, **changes):
        values = {"max_steps": 1, "learning_rate": 1e-30, "pre_seq_len": 128}
        return settings(generation, **values | changes)

    return make


@pytest.mark.parametrize("generation", [1, 2, 3, 4])
def test_a_text(generation, still, toy_model):
    prefix, recorder = first_prefix(still(generation, init_text=f" {TEXT}\n"))
    tokenizer = load_tokenizer(toy_model(generation))
    ids = render_text(tokenizer, list(Generation)[generation - 1], TEXT)
    torch.testing.assert_close(prefix, of_ids(toy_model(generation), ids))
    said = f"the prefix begins as the {len(ids)} tokens of --init-text"
    assert said in recorder.notices


@pytest.mark.parametrize("length", [3, 40])
def test_a_length_of_its_own(length, still, toy_model, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    prefix, recorder = first_prefix(still(init_text_file=file, pre_seq_len=length))
    ids = render_text(load_tokenizer(toy_model(3)), Generation.CHATGLM3, TEXT)
    fitted = (ids * 10)[:length]
    torch.testing.assert_close(prefix, of_ids(toy_model(3), fitted))
    (said,) = [text for text in recorder.notices if "begins" in text]
    if length == 3:
        assert said == (
            f"the prefix begins as the first 3 of {len(ids)} tokens of --init-text-file"
        )
    else:
        assert said == (
            f"the prefix begins as the {len(ids)} tokens, repeated to 40, of --init-text-file"
        )


@pytest.mark.parametrize("generation", [1, 3])
def test_records(generation, still, toy_model):
    asked = still(generation, init_data=2)
    prefix, _ = first_prefix(asked)
    tokenizer, kind = load_tokenizer(toy_model(generation)), list(Generation)[generation - 1]
    records = load_data(dataclasses.replace(asked, max_target_length=64), tokenizer, kind).train
    ids = [i for row in (0, 5) for i in as_context(tokenizer, kind, records[row]["input_ids"])]
    torch.testing.assert_close(prefix, of_ids(toy_model(generation), ids))
    metadata = json.loads((asked.output / "ptune_config.json").read_text(encoding="utf-8"))
    assert metadata["settings"]["pre_seq_len"] == metadata["pre_seq_len"] == len(prefix)
    assert len(metadata["inputs"]["beginning"]) == 64


def test_examples_of_the_first_generation_lose_their_marks(toy_tokenizer):
    tokenizer = toy_tokenizer(1)
    words = tokenizer.encode_text("裙")
    newline = tokenizer.encode_text("\n")
    marks = [tokenizer.gmask_token_id, tokenizer.bos_token_id]
    ids = [*words, *marks, *words, tokenizer.eos_token_id]
    found = as_context(tokenizer, Generation.CHATGLM, ids)
    assert found == [*words, *newline, *words, *newline]
    assert as_context(tokenizer, Generation.CHATGLM2, ids) == ids


def test_a_run_that_is_gone_on_with(settings):
    whole = settings(3, init_text=TEXT, pre_seq_len=9, max_steps=4, save_steps=2)
    train(whole, Recorder())
    part = dataclasses.replace(whole, output=whole.output.with_name("part"))

    class Stopped(Recorder):
        def step(self, step, max_steps):
            super().step(step, max_steps)
            if step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(part, Stopped())
    recorder = Recorder()
    train(part, recorder)
    assert recorder.summary.resumed_from.name == "checkpoint-2"
    assert torch.equal(prefix_of(part.output)[KEY], prefix_of(whole.output)[KEY])
    assert not any("begins" in text for text in recorder.notices)
    other = dataclasses.replace(part, init_text="别的话。", max_steps=6)
    with pytest.raises(ConfigError, match=r"^beginning differs from that of .*; use the same, or"):
        train(other, Recorder())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"init_text": "a", "init_data": 2},
            "--init-text and --init-data both say what the prefix begins as; leave one out",
        ),
        (
            {"init_data": 2, "prefix_projection": True},
            "--init-data does not go with --prefix-projection, whose MLP computes the keys and "
            "values: it cannot begin as given ones; leave one of them out",
        ),
        ({"init_text": " "}, "init_text ' ' is blank"),
        ({"init_data": 0}, "init_data 0 is out of range; use 1 to 1,000"),
    ],
)
def test_refused_at_once(changes, said, tmp_path):
    with pytest.raises(ConfigError) as caught:
        TrainSettings(data=(tmp_path / "a.json",), **changes)
    assert str(caught.value).startswith(said)


def test_refused_with_the_model(still, tmp_path, toy_model):
    context = find_base_model(str(toy_model(3))).config["seq_length"]
    long = "裙" * (context + 5)
    with pytest.raises(ConfigError) as caught:
        train(still(init_text=long), Recorder())
    assert str(caught.value) == (
        f"--init-text has {context + 11:,} tokens, and a prefix can begin as {context:,} at most; "
        f"take less of it, or the first part with --pre-seq-len {context}"
    )
    with pytest.raises(ConfigError, match=r"init_data 11 is more than the 10 records; use at most"):
        train(still(init_data=11), Recorder())
    with pytest.raises(DataError, match=r"^--init-text-file .*absent.txt does not exist"):
        train(still(init_text_file=tmp_path / "absent.txt"), Recorder())
