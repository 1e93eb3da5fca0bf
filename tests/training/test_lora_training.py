"""`ptune train --method lora`: what it writes, goes on from, and refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures.native_models import write_native
from fixtures.runs import Recorder, folders_in, run_settings
from safetensors.torch import load_file

from ptune import load_model
from ptune.checkpoint.metadata import CheckpointConfig
from ptune.errors import CheckpointError, ConfigError
from ptune.training.train import train

ADAPTER = "adapter_model.safetensors"
FILES = {"adapter_config.json", ADAPTER, "ptune_config.json", "ptune_manifest.json"}

pytestmark = pytest.mark.usefixtures("peft")


@pytest.fixture
def asked(toy_model, tmp_path):
    def make(generation=1, **changes):
        given = {"method": "lora", "lora_rank": 2, "pre_seq_len": 128, "learning_rate": 1e-2}
        return run_settings(tmp_path, toy_model(generation), **given | changes)

    return make


def assert_learns(recorder):
    losses = [entry["loss"] for entry in recorder.entries if "loss" in entry]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.3


@pytest.mark.parametrize("generation", [1, 2, 3, 4])
def test_what_it_writes(generation, asked, toy_model):
    recorder = Recorder()
    settings = asked(generation, max_steps=12, save_steps=6, save_total_limit=1)
    result = train(settings, recorder)
    assert_learns(recorder)
    assert result.noun == "LoRA" and recorder.notices == []
    assert {p.name for p in settings.output.iterdir() if p.is_file()} >= FILES
    last = {p.name for p in (settings.output / "checkpoint-12").iterdir()}
    assert last == {*FILES, "optimizer.safetensors", "trainer_state.json"}
    tensors = load_file(settings.output / ADAPTER)
    assert all(name.startswith("base_model.model.") for name in tensors)
    assert recorder.summary.trainable == sum(t.numel() for t in tensors.values())
    metadata = CheckpointConfig.read(settings.output)
    assert (metadata.method, metadata.pre_seq_len) == ("lora", None)
    assert metadata.settings["lora_rank"] == 2
    written = json.loads((settings.output / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["peft_type"]) == (2, 16, "LORA")
    assert written["base_model_name_or_path"] == str(toy_model(generation))
    model = load_model(toy_model(generation), settings.output)
    for name, value in model.named_parameters():
        if ".lora_" in name:
            stored = tensors[f"base_model.model.{name.replace('.default', '')}"]
            assert torch.equal(value, stored)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_goes_on_byte_for_byte(dropout, asked, tmp_path):
    whole = asked(output=tmp_path / "whole", lora_dropout=dropout)
    train(whole, Recorder())

    class Stop(Exception):
        pass

    def stop():
        raise Stop

    parts = asked(output=tmp_path / "parts", lora_dropout=dropout)
    with pytest.raises(Stop):
        train(parts, Recorder({5: stop}))
    assert folders_in(parts.output) == ["checkpoint-3"]
    recorder = Recorder()
    train(parts, recorder)
    assert recorder.summary.resumed_from == parts.output / "checkpoint-3"
    for name in (ADAPTER, "checkpoint-6/optimizer.safetensors"):
        assert (parts.output / name).read_bytes() == (whole.output / name).read_bytes()
    again = train(parts, Recorder())
    assert again.before and again.noun == "LoRA"


def test_micro_batches_do_not_matter(asked, tmp_path):
    results = []
    for size in (1, 4):
        settings = asked(output=tmp_path / str(size), micro_batch_size=size)
        train(settings, Recorder())
        results.append(load_file(settings.output / ADAPTER))
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], atol=1e-4, rtol=1e-3)


def test_best_is_taken(asked, monkeypatch):
    found = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr("ptune.training.trainer.total_loss", lambda *given: (next(found), 1))
    changes = {"eval_fraction": 0.2, "eval_steps": 1, "save_steps": 1, "load_best": True}
    settings = asked(max_steps=3, **changes)
    assert train(settings, Recorder()).best_step == 2
    best, last = (settings.output / f"checkpoint-{step}" for step in (2, 3))
    assert (settings.output / ADAPTER).read_bytes() == (best / ADAPTER).read_bytes()
    assert (best / ADAPTER).read_bytes() != (last / ADAPTER).read_bytes()


def test_checkpointing_and_bits(asked, tmp_path):
    for name, changes in {
        "checkpointed": {"gradient_checkpointing": True},
        "4": {"quantization_bit": "4"},
        "half": {"dtype": "bfloat16"},
    }.items():
        recorder = Recorder()
        train(asked(output=tmp_path / name, max_steps=12, **changes), recorder)
        assert_learns(recorder)


def test_defaults(asked, tmp_path, monkeypatch):
    settings = run_settings(tmp_path, "tiny", method="lora", pre_seq_len=128, max_steps=1)
    assert settings.learning_rate == 1e-4
    assert (settings.lora_rank, settings.lora_alpha, settings.lora_dropout) == (8, 16, 0.0)
    assert run_settings(tmp_path, "tiny").learning_rate == 2e-2
    monkeypatch.chdir(tmp_path)
    result = train(asked(2, output=None, max_steps=1), Recorder())
    assert result.output.name == "data-chatglm2-6b-lora-2-0.01"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pre_seq_len", 64),
        ("prefix_projection", True),
        ("prefix_dropout", 0.2),
        ("init_prefix", "x"),
        ("init_text", "x"),
        ("init_text_file", "x"),
        ("init_data", 2),
        ("distill_text", "x"),
    ],
)
def test_options_of_a_prefix_are_refused(name, value, tmp_path):
    flag = "--" + name.replace("_", "-")
    message = f"^{flag} has no effect with --method lora; leave one of them out$"
    with pytest.raises(ConfigError, match=message):
        run_settings(tmp_path, "tiny", **{"pre_seq_len": 128, "method": "lora", name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("lora_rank", 4), ("lora_alpha", 8), ("lora_dropout", 0.1), ("lora_target", "q_proj")],
)
def test_options_of_lora_are_refused_without_it(name, value, tmp_path):
    flag = "--" + name.replace("_", "-")
    message = f"^{flag} has no effect without --method lora; pass that, too, or leave it out$"
    with pytest.raises(ConfigError, match=message):
        run_settings(tmp_path, "tiny", **{name: value})
    message = f"^{flag} has no effect with --method p-tuning; leave one of them out$"
    with pytest.raises(ConfigError, match=message):
        run_settings(tmp_path, "tiny", given=frozenset({"method"}), **{name: value})


def test_an_output_of_another_method(asked, settings, tmp_path):
    train(settings(max_steps=1, learning_rate=5e-3), Recorder())
    message = "settings differ from those of .*method 'p-tuning' -> 'lora'"
    with pytest.raises(ConfigError, match=message):
        train(asked(max_steps=1), Recorder())
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "adapter_config.json").write_text("{}")
    message = r"holds a LoRA \(adapter_config.json\) and no checkpoint"
    with pytest.raises(ConfigError, match=message):
        train(asked(output=tmp_path / "alone"), Recorder())


def test_a_strange_checkpoint_is_no_beginning(asked, tmp_path):
    strange = tmp_path / "out" / "checkpoint-3"
    strange.mkdir(parents=True)
    (strange / "prefix_encoder.safetensors").touch()
    with pytest.raises(CheckpointError) as caught:
        train(asked(), Recorder())
    assert "--init-prefix" not in str(caught.value)


def test_other_rank_is_another_run(asked):
    train(asked(max_steps=1), Recorder())
    with pytest.raises(ConfigError, match=re.escape("lora_rank 2 -> 3")):
        train(asked(max_steps=1, lora_rank=3), Recorder())


def test_a_target_that_is_not_there(asked):
    with pytest.raises(ConfigError, match=r"^lora_target 'q_proj' is no linear layer .*dense"):
        train(asked(lora_target="q_proj"), Recorder())


def test_a_merged_base_says_that_its_prefix_is_left_out(settings, asked, tmp_path):
    from ptune.base.folder import find_base_model
    from ptune.commands.merge import merge

    made = settings(max_steps=1)
    train(made, Recorder())
    merged = merge(find_base_model(made.model), made.output, tmp_path / "merged")
    recorder = Recorder()
    train(asked(model=str(merged), output=tmp_path / "again", max_steps=1), recorder)
    assert recorder.notices[0] == (
        f"training starts from a new LoRA, not from the prefix that {merged} holds; a LoRA stands "
        "beside the weights alone"
    )


def test_several_targets_of_a_native_model(tmp_path):
    folder = write_native(tmp_path / "base", "qwen3")
    given = {"method": "lora", "pre_seq_len": 128, "lora_target": "q_proj,v_proj", "max_steps": 1}
    settings = run_settings(tmp_path, folder, **given)
    train(settings, Recorder())
    written = json.loads((settings.output / "adapter_config.json").read_text())
    assert written["target_modules"] == ["q_proj", "v_proj"]


def test_two_processes_train_as_one(peft, asked, tmp_path):
    """Under torchrun, as with a prefix."""
    changes = {"batch_size": 3, "micro_batch_size": 3, "max_steps": 3}
    alone = asked(2, output=tmp_path / "one", **changes)
    train(alone, Recorder())
    words = ["--data", str(alone.data[0]), "--model", alone.model, "--output", "many"]
    words += ["--method", "lora", "--lora-rank", "2", "--learning-rate", "0.01"]
    words += ["--batch-size", "3", "--micro-batch-size", "1", "--max-steps", "3"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--standalone", "--no-python", str(Path(sys.executable).with_name("ptune"))]
    places = [os.environ.get("PYTHONPATH", ""), str(Path(peft.__file__).parents[1])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launcher, "train", *words],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, places))},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("LoRA saved in many") == 1
    one, many = (load_file(tmp_path / name / ADAPTER) for name in ("one", "many"))
    for name, tensor in one.items():
        torch.testing.assert_close(many[name], tensor, atol=1e-4, rtol=1e-3)
