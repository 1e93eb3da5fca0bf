"""Training against the original's traces, the order of records, resuming, and what is saved."""

import json
from types import SimpleNamespace

import datasets
import pytest
import torch
from checkpoints import GOLDEN
from runs import (
    Recorder,
    folders_in,
    interrupt,
    log_lines,
    prefix_of,
    write_records,
)
from safetensors.torch import load_file

from ptune import train as train_module
from ptune.checkpoint import find_checkpoint
from ptune.config import TrainSettings
from ptune.data import Truncation
from ptune.train import train
from ptune.trainer import LengthGroupedSampler, TrainLog, last_resumable

TOLERANCE = 2e-4
OFFICIAL_KEY = "transformer.prefix_encoder."
KEY = f"{OFFICIAL_KEY}embedding.weight"


@pytest.mark.parametrize(
    ("name", "micro_batch_size", "gradient_checkpointing"),
    [
        ("v1", 4, False),
        ("v1", 2, False),
        ("v1", 1, False),
        ("v1-projection", 2, True),
        ("v2", 2, True),
    ],
)
def test_training_is_the_originals(
    name, micro_batch_size, gradient_checkpointing, model_folder, tmp_path, monkeypatch
):
    trace = json.loads((GOLDEN / f"training-{name}.json").read_text(encoding="utf-8"))
    examples = datasets.Dataset.from_list(trace["records"])
    data = train_module._Data(examples, None, Truncation(len(examples), 0, 0, 0), ())
    # The ids are there, and neither the texts nor the original's tokenizer are needed.
    monkeypatch.setattr(train_module, "_load_data", lambda *arguments: data)
    monkeypatch.setattr(
        train_module,
        "build_tokenizer",
        lambda base: SimpleNamespace(pad_token_id=base.config["pad_token_id"]),
    )
    model = model_folder(name)
    train(
        TrainSettings(
            data=(tmp_path / "unread.json",),
            model=str(model),
            output=tmp_path / "out",
            init_prefix=model / "prefix",
            prefix_dropout=0.0,
            shuffle=False,
            batch_size=trace["batch_size"],
            micro_batch_size=micro_batch_size,
            max_steps=trace["steps"],
            learning_rate=trace["learning_rate"],
            logging_steps=1,
            gradient_checkpointing=gradient_checkpointing,
            device="cpu",
        ),
        Recorder(),
    )
    lines = log_lines(tmp_path / "out")
    assert [line["step"] for line in lines] == list(range(1, trace["steps"] + 1))
    assert [line["loss"] for line in lines] == pytest.approx(trace["losses"], abs=TOLERANCE)
    norms = [line["grad_norm"] for line in lines]
    assert norms == pytest.approx(trace["grad_norms"], abs=TOLERANCE)

    prefix = prefix_of(tmp_path / "out")
    assert prefix.keys() == {OFFICIAL_KEY + part for part in trace["final_prefix"]}
    for part, expected in trace["final_prefix"].items():
        tensor = prefix[OFFICIAL_KEY + part].double()
        assert tensor.sum().item() == pytest.approx(expected["sum"], rel=1e-4, abs=2e-3)
        assert tensor.abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-5)
        first = tensor.flatten()[: len(expected["first"])].tolist()
        assert first == pytest.approx(expected["first"], abs=TOLERANCE)


class TestLengthGroupedSampler:
    LENGTHS = torch.randint(5, 120, (523,), generator=torch.Generator().manual_seed(0)).tolist()

    def sampler(self, epoch=0, seed=42, lengths=LENGTHS):
        sampler = LengthGroupedSampler(lengths, 4, seed)
        sampler.set_epoch(epoch)
        return sampler

    def padding(self, order):
        """Tokens of padding in batches of four."""
        lengths = [self.LENGTHS[i] for i in order]
        batches = [lengths[i : i + 4] for i in range(0, len(lengths), 4)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    def test_every_index_once(self):
        sampler = self.sampler()
        assert sorted(sampler) == list(range(523))
        assert len(sampler) == 523

    def test_order_follows_from_seed_and_epoch(self):
        first = list(self.sampler(epoch=3))
        assert list(self.sampler(epoch=3)) == first
        assert list(self.sampler(epoch=4)) != first
        assert list(self.sampler(epoch=3, seed=7)) != first
        again = self.sampler()
        list(again)  # an epoch that was drawn before leaves nothing behind
        again.set_epoch(3)
        assert list(again) == first

    def test_batches_are_alike_in_length_and_random_in_order(self):
        order = list(self.sampler())
        shuffled = torch.randperm(523, generator=torch.Generator().manual_seed(1)).tolist()
        assert self.padding(order) < self.padding(shuffled) / 10
        longest = [max(self.LENGTHS[i] for i in order[k : k + 4]) for k in range(0, 520, 4)]
        assert longest != sorted(longest) and longest != sorted(longest, reverse=True)

    def test_short_batch_comes_last(self):
        # Only the groups of 50 batches tell where batches begin: lengths fall within each one.
        order = [self.LENGTHS[i] for i in self.sampler()]
        batches = [order[i : i + 4] for i in range(0, len(order), 4)]
        assert all(batch == sorted(batch, reverse=True) for batch in batches)
        assert len(batches[-1]) == 3

    def test_fewer_records_than_a_batch(self):
        assert sorted(self.sampler(lengths=[5, 9])) == [0, 1]


def same_lines(found, expected):
    """Compare log lines but for their times."""
    for lines in (found, expected):
        for line in lines:
            line.pop("samples_per_second", None)
    return found == expected


class TestResume:
    # Three steps an epoch, the third one short: at its end, and in the middle of the second.
    @pytest.mark.parametrize(("generation", "stop_at"), [(1, 3), (2, 4), (3, 5)])
    def test_is_bit_exact(self, generation, stop_at, settings, tmp_path):
        def run(output, recorder, **changes):
            asked = settings(generation, output=tmp_path / output, save_steps=1000, **changes)
            return train(asked, recorder).output

        straight = run("straight", Recorder())
        stopped = run("stopped", Recorder({stop_at: interrupt}))
        assert folders_in(stopped) == [f"checkpoint-{stop_at}"]
        resumed = run("stopped", Recorder(), resume=True)
        assert same_lines(log_lines(resumed), log_lines(straight))
        assert torch.equal(prefix_of(resumed)[KEY], prefix_of(straight)[KEY])
        middle = prefix_of(resumed / f"checkpoint-{stop_at}")
        assert not torch.equal(middle[KEY], prefix_of(straight)[KEY])

    def test_log_lines_behind_the_checkpoint_are_written_again(self, settings):
        def crash():
            raise RuntimeError("killed")

        asked = settings(save_steps=2)
        with pytest.raises(RuntimeError, match="killed"):
            train(asked, Recorder({5: crash}))
        before = log_lines(asked.output)
        assert [line["step"] for line in before] == [1, 2, 3, 4]
        (asked.output / "checkpoint-4" / "trainer_state.json").unlink()  # half saved
        assert last_resumable(asked.output).name == "checkpoint-2"
        recorder = Recorder()
        train(settings(save_steps=2, resume=True), recorder)
        after = log_lines(asked.output)
        assert [line["step"] for line in after] == [1, 2, 3, 4, 5, 6]
        assert after[:2] == before[:2]
        assert same_lines(after[2:4], before[2:4])
        assert recorder.summary.resumed_from.name == "checkpoint-2"

    def test_half_a_log_line_is_dropped(self, settings):
        first = train(settings(max_steps=3), Recorder())
        log = first.output / "train_log.jsonl"
        log.write_text(log.read_text() + '{"step": 4, "lo')  # as a power cut leaves it
        train(settings(resume=True, max_steps=4), Recorder())
        assert [line["step"] for line in log_lines(first.output)] == [1, 2, 3, 4]

    def test_stopped_again_leaves_the_newest_prefix_to_be_found(self, settings):
        first = train(settings(max_steps=3), Recorder())
        changes = {"resume": True, "max_steps": 9, "save_steps": 1000}
        train(settings(**changes), Recorder({5: interrupt}))
        assert find_checkpoint(first.output).name == "checkpoint-5"

    def test_with_another_micro_batch_and_more_steps(self, settings):
        train(settings(max_steps=3), Recorder())
        changes = {"micro_batch_size": 4, "gradient_checkpointing": True, "max_steps": 5}
        result = train(settings(resume=True, **changes), Recorder())
        assert result.steps == 5

    def test_fresh_run_forgets_the_log_of_one_that_never_saved(self, settings):
        asked = settings(max_steps=2)
        asked.output.mkdir()
        (asked.output / "train_log.jsonl").write_text('{"step": 9, "loss": 1.0}\n')
        train(asked, Recorder())
        assert [line["step"] for line in log_lines(asked.output)] == [1, 2]


class TestWhatIsSaved:
    def test_checkpoint_folder(self, settings):
        asked = settings(max_steps=3)
        train(asked, Recorder())
        own = {"prefix_encoder.safetensors", "ptune_config.json"}
        trainer = {"optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"}
        checkpoint = asked.output / "checkpoint-3"
        assert {path.name for path in checkpoint.iterdir()} == own | trainer
        expected = own | {"checkpoint-3", "train_log.jsonl"}
        assert {path.name for path in asked.output.iterdir()} == expected
        for folder in (checkpoint, asked.output):
            prefix = load_file(folder / "prefix_encoder.safetensors")
            assert prefix.keys() == {KEY}
            assert prefix[KEY].shape == (4, 2 * 2 * 32)
            assert prefix[KEY].dtype == torch.float32
        optimizer = torch.load(checkpoint / "optimizer.pt")
        assert [s["exp_avg"].shape for s in optimizer["state"].values()] == [(4, 2 * 2 * 32)]

    def test_projection_is_saved_whole(self, settings):
        asked = settings(max_steps=1, prefix_projection=True)
        train(asked, Recorder())
        names = ("embedding.weight", "trans.0.weight", "trans.0.bias")
        names += ("trans.2.weight", "trans.2.bias")
        assert prefix_of(asked.output).keys() == {OFFICIAL_KEY + name for name in names}

    def test_save_total_limit(self, settings):
        asked = settings(max_steps=6, save_steps=1, save_total_limit=2)
        train(asked, Recorder())
        assert folders_in(asked.output) == ["checkpoint-5", "checkpoint-6"]

    def test_log_fields(self, settings):
        asked = settings(max_steps=6, logging_steps=2, warmup_steps=2)
        recorder = Recorder()
        train(asked, recorder)
        lines = log_lines(asked.output)
        assert recorder.entries == lines
        assert [line["step"] for line in lines] == [2, 4, 6]
        fields = {"step", "loss", "grad_norm", "learning_rate", "epoch", "samples_per_second"}
        assert all(line.keys() == fields for line in lines)
        assert [line["learning_rate"] for line in lines] == pytest.approx([0.01, 0.015, 0.005])
        assert [round(line["epoch"]) for line in lines] == [1, 1, 2]
        assert all(line["samples_per_second"] > 0 for line in lines)


@pytest.mark.parametrize("generation", [1, 2])
def test_gradient_checkpointing_changes_nothing(generation, settings, tmp_path):
    losses = []
    for enabled in (False, True):
        output = tmp_path / f"checkpointing-{enabled}"
        asked = settings(generation, output=output, gradient_checkpointing=enabled, max_steps=4)
        train(asked, Recorder())
        losses.append([line["loss"] for line in log_lines(output)])
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert len(set(losses[0])) == 4


def test_without_shuffling_records_come_in_file_order(settings, tmp_path):
    data = write_records(tmp_path / "data.json", 10)
    lines = data.read_text(encoding="utf-8").splitlines()
    first = tmp_path / "first.json"
    first.write_text("\n".join(lines[:4]), encoding="utf-8")
    losses = []
    for name, files in (("all", (data,)), ("four", (first,))):
        asked = settings(data=files, output=tmp_path / name, max_steps=1, shuffle=False)
        train(asked, Recorder())
        losses.append(log_lines(tmp_path / name)[0]["loss"])
    assert losses[0] == losses[1]
    train(settings(max_steps=1), Recorder())
    assert log_lines(tmp_path / "out")[0]["loss"] != losses[0]


def test_log_of_other_processes_stays_unwritten(tmp_path):
    recorder = Recorder()
    log = TrainLog(tmp_path / "train_log.jsonl", 4, recorder)
    state = SimpleNamespace(global_step=1, epoch=1.0, is_world_process_zero=False)
    log.on_train_begin(None, state, None)
    log.on_log(None, state, None, {"loss": 1.0})
    assert recorder.entries == [] and not log.file.exists()
