"""Runs that begin as the prefixes of several checkpoints."""

import hashlib
import json
import re
import shutil

import pytest
import torch
from fixtures.checkpoints import small_case, write_model
from fixtures.runs import Recorder, interrupt, prefix_of

from ptune import load_model
from ptune.base.folder import find_base_model
from ptune.checkpoint.metadata import CheckpointConfig
from ptune.checkpoint.prefix import attach_prefix, digest_prefix, read_prefix
from ptune.commands.export import export_prefix
from ptune.config.resolve import resolve
from ptune.config.settings import TrainSettings
from ptune.errors import CheckpointError, ConfigError
from ptune.models.prefix_encoder import PrefixEncoder
from ptune.training.train import train

KEY = "transformer.prefix_encoder.embedding.weight"
STILL = {"max_steps": 1, "learning_rate": 1e-30}


@pytest.fixture
def made(settings, tmp_path):
    """Train a prefix of a length, once."""

    def make(name, generation=3, pre_seq_len=4, **changes):
        output = tmp_path / name
        asked = {"pre_seq_len": pre_seq_len, "output": output, "max_steps": 1, **changes}
        if not output.exists():
            train(settings(generation, **asked), Recorder())
        return output

    return make


def begun(asked):
    recorder = Recorder()
    train(asked, recorder)
    return prefix_of(asked.output)[KEY], recorder.notices


def test_mean(settings, made):
    folders = (made("a"), made("b", seed=7), made("c", seed=8))
    asked = settings(3, init_prefix=folders, **STILL)
    prefix, notices = begun(asked)
    parts = torch.stack([prefix_of(folder)[KEY] for folder in folders])
    torch.testing.assert_close(prefix, parts.mean(0))
    assert notices == []
    metadata = CheckpointConfig.read(asked.output)
    assert (metadata.pre_seq_len, metadata.settings["init_merge"]) == (4, "mean")
    assert metadata.settings["init_prefix"] == [str(folder) for folder in folders]


@pytest.mark.parametrize("generation", [1, 2, 3, 4])
def test_concatenation_is_seen_whole(generation, settings, made, toy_model):
    """The model with it computes what one with a prefix put together by hand does."""
    first = made("a", generation)
    second = made("b", generation, pre_seq_len=3, prefix_projection=True, learning_rate=1.0)
    asked = settings(generation, init_prefix=(first, second), init_merge="concat", **STILL)
    _, notices = begun(asked)
    assert notices == [
        f"the prefix of {second} is taken by the keys and values that its projection computes; the "
        "new one has no projection"
    ]
    metadata = CheckpointConfig.read(asked.output)
    assert (metadata.pre_seq_len, metadata.prefix_projection) == (7, False)

    projected = load_model(toy_model(generation), second, device="cpu").base_model.prefix_encoder
    rows = torch.cat([prefix_of(first)[KEY], projected.trans(projected.embedding.weight)])
    model = load_model(toy_model(generation), device="cpu")
    by_hand = PrefixEncoder(model.base_model.prefix_shape, 7, dropout=0.0)
    by_hand.load_state_dict({"embedding.weight": rows})
    attach_prefix(model, by_hand)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        found = load_model(toy_model(generation), asked.output, device="cpu")(input_ids=ids).logits
        alone = load_model(toy_model(generation), first, device="cpu")(input_ids=ids).logits
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, alone, atol=1e-4)


def test_adapters_take_part(settings, made, toy_model, tmp_path):
    own, other = made("a"), made("b", seed=7)
    base = find_base_model(toy_model(3))
    adapter = export_prefix(base, other, tmp_path / "adapter", "peft")
    prefix, _ = begun(settings(3, init_prefix=(own, adapter), init_merge="concat", **STILL))
    rows = torch.cat([prefix_of(own)[KEY], prefix_of(other)[KEY]])
    torch.testing.assert_close(prefix, rows, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(read_prefix(adapter)["embedding.weight"], rows[4:], atol=1e-3)


def test_a_run_goes_on_with_the_same_ones_alone(settings, made):
    first, second, third = made("a"), made("b", seed=7), made("c", seed=8)
    changes = {"save_steps": 2, "learning_rate": 0.01}
    train(settings(3, init_prefix=(first, second), **changes), Recorder({3: interrupt}))
    for others in ((first, third), (first,), (first, second, third), (second, first)):
        with pytest.raises(
            ConfigError, match=r"^init_prefix differs from that of .*checkpoint-3: "
        ):
            train(settings(3, init_prefix=others, **changes), Recorder())
    with pytest.raises(ConfigError, match=r"^settings differ from .*init_merge 'mean' -> 'concat'"):
        asked = {"init_prefix": (first, second), "init_merge": "concat", **changes}
        train(settings(3, **asked, pre_seq_len=8), Recorder())
    asked = settings(3, init_prefix=(first, second), **changes)
    shutil.move(second, moved := second.with_name("moved"))
    asked = settings(3, init_prefix=(first, moved), **changes)
    assert train(asked, Recorder()).steps == 6
    recorded = CheckpointConfig.read(asked.output).inputs["init_prefix"]
    digests = digest_prefix(first) + digest_prefix(moved)
    assert recorded == hashlib.sha256(digests.encode()).hexdigest()


class TestErrors:
    def test_no_mean_of_two_lengths(self, settings, made):
        first, second = made("a"), made("b", pre_seq_len=3)
        message = re.escape(
            f"prefixes of 4 and 3 tokens ({first}, {second}) have no mean; use --init-merge "
            "concat, or prefixes of one length"
        )
        with pytest.raises(ConfigError, match=f"^{message}$"):
            train(settings(3, init_prefix=(first, second)), Recorder())

    def test_more_than_a_prefix_may_have(self, settings, made):
        first = made("a", pre_seq_len=5001)
        message = (
            r"^--init-merge concat gives a prefix of 10,002 tokens \(5,001 \+ 5,001\); its length "
            r"may be 1 to 10,000, leave out an --init-prefix$"
        )
        with pytest.raises(ConfigError, match=message):
            train(settings(3, init_prefix=(first, first), init_merge="concat"), Recorder())

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"pre_seq_len": 4, "init_merge": "concat"}, "pre_seq_len 4|pre_seq_len 8"),
            ({"prefix_projection": True}, "prefix_projection True|prefix_projection False"),
        ],
    )
    def test_another_form(self, changes, said, settings, made):
        first, second = made("a"), made("b", seed=7)
        asked, found = said.split("|")
        message = re.escape(
            f"{asked} does not go with the prefixes of {first} and {second}, which give {found}; "
            f"leave --{asked.split()[0].replace('_', '-')} out, or do without --init-prefix"
        )
        with pytest.raises(ConfigError, match=f"^{message}$"):
            train(settings(3, init_prefix=(first, second), **changes), Recorder())

    def test_each_is_of_the_model(self, settings, made, toy_model, tmp_path):
        first = made("a")
        other = tmp_path / "other"
        shutil.copytree(toy_model(3), other)
        case = small_case(3, **json.loads((other / "config.json").read_text()))
        write_model(other, case | {"seed": 5})
        second = made("b", model=str(other))
        message = f"^the prefix in {second} was trained on .*, not on {toy_model(3)} "
        with pytest.raises(CheckpointError, match=message):
            train(settings(3, init_prefix=(first, second)), Recorder())

    def test_each_is_of_the_prompt(self, settings, made, toy_model):
        first, second = made("a"), made("b", 2)
        message = f"^the prefix in {second} was trained with the prompt of chatglm2, but "
        with pytest.raises(CheckpointError, match=message):
            train(settings(3, init_prefix=(first, second)), Recorder())

    @pytest.mark.parametrize("folders", [None, ("a",)])
    def test_one_prefix_is_not_merged(self, folders):
        message = (
            "^--init-merge has no effect without a second --init-prefix; pass that, too, or leave "
            "it out$"
        )
        for how in ("mean", "concat"):
            flags = {"data": ("a.json",), "init_merge": how, "init_prefix": folders}
            with pytest.raises(ConfigError, match=message):
                resolve(TrainSettings, flags)


def test_yaml_takes_one_or_a_list(tmp_path):
    file = tmp_path / "run.yaml"
    for written, folders in (("a", ["a"]), ("[a, b]", ["a", "b"])):
        file.write_text(f"data: d.json\ninit_prefix: {written}\n", encoding="utf-8")
        found = resolve(TrainSettings, {}, file).init_prefix
        assert [str(folder) for folder in found] == folders
