"""Training against the original's traces, the order of records, resuming, and what is saved."""

import gc
import json
from types import SimpleNamespace

import datasets
import pytest
import torch
from fixtures.checkpoints import GOLDEN
from fixtures.runs import (
    Recorder,
    folders_in,
    interrupt,
    log_lines,
    prefix_of,
    write_records,
)
from safetensors.torch import load_file

from ptune.checkpoint import method as method_module
from ptune.checkpoint.folder import find_checkpoint
from ptune.config.settings import TrainSettings
from ptune.data.examples import Truncation
from ptune.errors import ConfigError
from ptune.training import train as train_module
from ptune.training import trainer as trainer_module
from ptune.training.checkpoints import newest_whole
from ptune.training.data import TrainingData
from ptune.training.log import TrainLog
from ptune.training.step_memory import StepMemory
from ptune.training.train import train
from ptune.training.trainer import AdapterTrainer

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
    records = [record | {"length": len(record["input_ids"])} for record in trace["records"]]
    examples = datasets.Dataset.from_list(records)
    data = TrainingData(examples, None, Truncation(len(examples), 0, 0, 0))
    # The ids are there, and neither the texts nor the original's tokenizer are needed.
    monkeypatch.setattr(train_module, "load_data", lambda *arguments: data)
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
            init_prefix=(model / "prefix",),
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


def same_lines(found, expected):
    """Compare log lines but for their times."""
    for lines in (found, expected):
        for line in lines:
            line.pop("samples_per_second", None)
    return found == expected


class TestResume:
    # Three steps an epoch, the third one short: at its end, and in the middle of the second.
    @pytest.mark.parametrize(("generation", "stop_at"), [(1, 3), (2, 4), (3, 5), (4, 3)])
    def test_is_bit_exact(self, generation, stop_at, settings, tmp_path):
        def run(output, recorder, **changes):
            asked = settings(generation, output=tmp_path / output, save_steps=1000, **changes)
            return train(asked, recorder).output

        straight = run("straight", Recorder())
        stopped = run("stopped", Recorder({stop_at: interrupt}))
        assert folders_in(stopped) == [f"checkpoint-{stop_at}"]
        resumed = run("stopped", Recorder())
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
        assert newest_whole(asked.output)[0].name == "checkpoint-2"
        recorder = Recorder()
        train(settings(save_steps=2), recorder)
        after = log_lines(asked.output)
        assert [line["step"] for line in after] == [1, 2, 3, 4, 5, 6]
        assert after[:2] == before[:2]
        assert same_lines(after[2:4], before[2:4])
        assert recorder.summary.resumed_from.name == "checkpoint-2"

    def test_half_a_log_line_is_dropped(self, settings):
        first = train(settings(max_steps=3), Recorder())
        log = first.output / "train_log.jsonl"
        log.write_text(log.read_text() + '{"step": 4, "lo')  # as a power cut leaves it
        train(settings(max_steps=4), Recorder())
        assert [line["step"] for line in log_lines(first.output)] == [1, 2, 3, 4]

    def test_stopped_again_leaves_the_newest_prefix_to_be_found(self, settings):
        first = train(settings(max_steps=3), Recorder())
        changes = {"max_steps": 9, "save_steps": 1000}
        train(settings(**changes), Recorder({5: interrupt}))
        assert find_checkpoint(first.output).name == "checkpoint-5"

    def test_with_another_micro_batch_and_more_steps(self, settings):
        train(settings(max_steps=3), Recorder())
        changes = {"micro_batch_size": 4, "gradient_checkpointing": True, "max_steps": 5}
        result = train(settings(**changes), Recorder())
        assert result.steps == 5

    def test_fresh_run_drops_the_log_of_one_that_never_saved(self, settings):
        asked = settings(max_steps=2)
        asked.output.mkdir()
        (asked.output / "train_log.jsonl").write_text('{"step": 9, "loss": 1.0}\n')
        train(asked, Recorder())
        assert [line["step"] for line in log_lines(asked.output)] == [1, 2]


@pytest.fixture
def trainer(settings, monkeypatch):
    """The trainer of a run of one step."""
    trainers, save = [], AdapterTrainer._save_checkpoint

    def spy(self, *arguments):
        trainers.append(self)
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "_save_checkpoint", spy)
        train(settings(max_steps=1), Recorder())
    return trainers[0]


def test_prefix_without_a_finite_loss_is_withheld(trainer):
    """Not one whose newest micro-batch has no label."""
    labels = trainer._newest["labels"]
    trainer._newest["labels"] = torch.full_like(labels, -100)
    assert trainer.result_is_good()
    trainer._newest["labels"] = labels
    assert trainer.result_is_good() and trainer.withheld is None
    with torch.no_grad():
        trainer.model.base_model.prefix_encoder.embedding.weight.fill_(torch.nan)
    trainer._save_checkpoint(trainer.model, None)
    assert trainer.withheld == 1
    message = "checkpoint-1 is not written: its prefix gives no finite loss"
    assert trainer.guard.log.reporter.notices == [message]


def test_skipped_step_leaves_no_gradient_for_the_optimizer(trainer, monkeypatch):
    rows, width = trainer._newest["labels"].shape
    inputs = {**trainer._newest, "lengths": [width] * rows, "places": list(range(rows))}
    (weight,) = trainer.model.base_model.prefix_encoder.parameters()
    assert trainer.training_step(trainer.model, inputs, torch.tensor(rows)) > 0
    assert weight.grad is not None
    monkeypatch.setattr(trainer.guard, "judge", lambda *numbers: False)
    monkeypatch.setattr(trainer.guard, "loss_is_finite", False)
    assert trainer.training_step(trainer.model, inputs, torch.tensor(rows)) == 0
    assert weight.grad is None


def test_logits_of_label_tokens_alone_are_made_and_no_cache(trainer):
    seen = []

    def hook(module, arguments, options):
        seen.append((options["use_cache"], options["label_logits_only"]))

    trainer.model.register_forward_pre_hook(hook, with_kwargs=True)
    trainer.compute_loss(trainer.model, trainer._newest)
    assert seen == [(False, True)]


def test_several_processes_add_up_what_each_has_seen(trainer, monkeypatch):
    """Two that have seen the same: the sums are twice those of one."""
    judged, logged = [], []

    def reduce(tensor, reduction):
        assert reduction == "sum"
        return tensor * 2

    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    monkeypatch.setattr(type(trainer.args), "process_index", 1)
    monkeypatch.setattr(trainer.accelerator, "reduce", reduce)
    monkeypatch.setattr(trainer.guard, "judge", lambda *numbers: judged.append(numbers) or True)

    def double(tensors):
        for tensor in tensors:
            tensor.mul_(2)

    monkeypatch.setattr(trainer_module, "sum_over_processes", double)
    rows, width = trainer._newest["labels"].shape
    inputs = {**trainer._newest, "lengths": [width] * rows, "places": list(range(rows))}
    loss = trainer.training_step(trainer.model, inputs, torch.tensor(rows))
    alone = trainer._accumulate_gradients(trainer.model, inputs, torch.tensor(rows))
    assert judged[0][0] == loss == pytest.approx(2 * alone.item())

    def total(model, share, *arguments):
        assert list(share) == [{"n": 2}]  # its half of the records
        return 2.0**53 + 2, 4

    monkeypatch.setattr(trainer_module, "total_loss", total)
    monkeypatch.setattr(trainer, "log", logged.append)
    trainer.eval_dataset = datasets.Dataset.from_list([{"n": 1}, {"n": 2}])
    with torch.device("meta"):  # whatever the default is
        assert trainer.evaluate() == {"eval_loss": (2.0**53 + 2) / 4}
    assert logged == [{"eval_loss": (2.0**53 + 2) / 4}]


class TestWhatIsSaved:
    def test_checkpoint_folder(self, settings):
        asked = settings(max_steps=3)
        train(asked, Recorder())
        own = {"prefix_encoder.safetensors", "ptune_config.json"}
        own |= {"ptune_manifest.json"}
        trainer = {"optimizer.safetensors", "trainer_state.json"}
        checkpoint = asked.output / "checkpoint-3"
        assert {path.name for path in checkpoint.iterdir()} == own | trainer
        expected = own | {"checkpoint-3", "train_log.jsonl", ".lock"}
        assert {path.name for path in asked.output.iterdir()} == expected
        for folder in (checkpoint, asked.output):
            prefix = load_file(folder / "prefix_encoder.safetensors")
            assert prefix.keys() == {KEY}
            assert prefix[KEY].shape == (4, 2 * 2 * 32)
            assert prefix[KEY].dtype == torch.float32
        optimizer = load_file(checkpoint / "optimizer.safetensors")
        assert {name: list(tensor.shape) for name, tensor in optimizer.items()} == {
            "embedding.weight/step": [],
            "embedding.weight/exp_avg": [4, 2 * 2 * 32],
            "embedding.weight/exp_avg_sq": [4, 2 * 2 * 32],
        }

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


def test_loss_scale_is_divided_out(settings, tmp_path):
    norms = []
    for dtype in ("float16", "float32"):
        asked = settings(dtype=dtype, output=tmp_path / dtype, max_steps=1, prefix_dropout=0.0)
        train(asked, Recorder())
        norms.append(log_lines(asked.output)[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=0.1)  # not 65,536 times as large


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


@pytest.fixture
def memory(monkeypatch):
    """Pretend that memory is full when a model is given more than `limit` rows."""

    def pretend(limit, training=True, evaluation=True):
        calls = []
        original = method_module.attach_prefix

        def attach(model, prefix):
            original(model, prefix)

            def hook(module, args, kwargs):
                rows = len(kwargs["input_ids"])
                calls.append(rows)
                if rows > limit and (training if module.training else evaluation):
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

            model.register_forward_pre_hook(hook, with_kwargs=True)

        monkeypatch.setattr(method_module, "attach_prefix", attach)
        return calls

    return pretend


class TestAFunctionOfTheSeed:
    def losses(self, settings, tmp_path, **changes):
        data = write_records(tmp_path / "forty.json", 40)
        output = tmp_path / "-".join(map(str, changes.values()))
        values = {"data": (data,), "batch_size": 16, "micro_batch_size": 4, "max_steps": 6}
        values |= {"prefix_dropout": 0.3, "output": output}
        recorder = Recorder()
        train(settings(**values | changes), recorder)
        return [entry["loss"] for entry in recorder.entries]

    def test_micro_batches_agree_with_dropout(self, settings, tmp_path):
        """Also over the short batch that ends an epoch."""
        whole = self.losses(settings, tmp_path, micro_batch_size=16)
        for size in (4, 1):
            found = self.losses(settings, tmp_path, micro_batch_size=size)
            assert found == pytest.approx(whole, rel=1e-6)
        found = self.losses(settings, tmp_path, micro_batch_size=4, gradient_checkpointing=True)
        assert found == pytest.approx(whole, rel=1e-6)
        assert self.losses(settings, tmp_path, prefix_dropout=0.2) != pytest.approx(whole, rel=1e-4)

    def test_what_was_drawn_before_is_of_no_account(self, settings, tmp_path):
        torch.manual_seed(1)
        first = self.losses(settings, tmp_path, logging_steps=1)
        torch.manual_seed(2)
        torch.rand(5)
        assert self.losses(settings, tmp_path, save_total_limit=2) == first
        assert self.losses(settings, tmp_path, seed=43) != first


class TestFullMemory:
    def losses(self, output):
        return [line["loss"] for line in log_lines(output) if "loss" in line]

    def test_micro_batch_is_halved_and_nothing_else_changes(self, settings, tmp_path, memory):
        small = settings(output=tmp_path / "small", batch_size=8, micro_batch_size=2)
        train(small, Recorder())
        calls = memory(2)
        asked = settings(output=tmp_path / "auto", batch_size=8, micro_batch_size="auto")
        recorder = Recorder()
        assert train(asked, recorder).steps == 6
        assert calls[:6] == [8, 4, 2, 2, 2, 2] and set(calls[6:]) == {2}
        # The very same numbers, dropout included, since the step begins anew.
        assert same_lines(log_lines(asked.output), log_lines(small.output))
        assert torch.equal(prefix_of(asked.output)[KEY], prefix_of(small.output)[KEY])
        assert recorder.notices == [
            "memory is full at micro-batch 8; continuing with micro-batches of 4 from step 1",
            "memory is full at micro-batch 4; continuing with micro-batches of 2 from step 1",
        ]
        assert recorder.summary.micro_batch_size == 8

    def test_in_the_middle_of_a_step(self, settings, tmp_path, memory, monkeypatch):
        """Gradients of the micro-batches before the failure do not count twice."""
        small = settings(output=tmp_path / "small", batch_size=8, micro_batch_size=1)
        train(small, Recorder())
        calls = memory(100)
        passes = []

        def compute(self, model, part, original=AdapterTrainer.compute_loss, **labels):
            passes.append(len(part["input_ids"]))
            if len(passes) == 3:  # of four
                raise RuntimeError("CUDA error: out of memory")
            return original(self, model, part, **labels)

        monkeypatch.setattr(AdapterTrainer, "compute_loss", compute)
        monkeypatch.setattr(StepMemory, "first_micro_batch", lambda self, rows, device: 2)
        asked = settings(output=tmp_path / "auto", batch_size=8, micro_batch_size="auto")
        train(asked, Recorder())
        assert passes[:4] == [2, 2, 2, 1] and calls[2] == 1
        assert same_lines(log_lines(asked.output), log_lines(small.output))

    def test_short_batch_and_several_sizes_agree(self, settings, tmp_path):
        traces = []
        for size in ("auto", 8, 4, 2, 1):
            output = tmp_path / f"size-{size}"
            changes = {"batch_size": 8, "micro_batch_size": size, "prefix_dropout": 0.0}
            train(settings(output=output, **changes), Recorder())
            traces.append(self.losses(output))
        for trace in traces[1:]:
            assert trace == pytest.approx(traces[0], rel=1e-5)
        assert traces[0] == traces[1]

    def test_evaluation_halves_too(self, settings, tmp_path, memory):
        dev = write_records(tmp_path / "dev.json", 7)
        changes = {"eval_data": (dev,), "max_steps": 2, "eval_steps": 2, "batch_size": 8}
        plain = settings(output=tmp_path / "plain", micro_batch_size=2, **changes)
        train(plain, Recorder())
        memory(2, training=False)
        asked, recorder = settings(micro_batch_size="auto", **changes), Recorder()
        train(asked, recorder)
        found, expected = (
            [line["eval_loss"] for line in log_lines(output) if "eval_loss" in line]
            for output in (asked.output, plain.output)
        )
        assert found == pytest.approx(expected, rel=1e-4)
        assert [text.split(";")[0] for text in recorder.notices] == [
            "memory is full at micro-batch 8",
            "memory is full at micro-batch 4",
        ]

    def test_one_record_that_does_not_fit(self, settings, memory):
        memory(0)
        message = (
            r"memory is full at micro-batch 1 in step 1; use in this order: "
            r"--quantization-bit 8 .saves \d+\.\d MB., --quantization-bit 4 .*, "
            r"--gradient-checkpointing .*, --max-source-length \d+ --max-target-length 17 .saves"
        )
        recorder = Recorder()
        with pytest.raises(ConfigError, match=message):
            train(settings(micro_batch_size="auto"), recorder)
        assert len(recorder.notices) == 2

    def test_what_is_in_use_already_is_no_advice(self, settings, memory):
        memory(0)
        changes = {"gradient_checkpointing": True, "micro_batch_size": 1}
        with pytest.raises(ConfigError, match="in this order: ") as refused:
            train(settings(**changes), Recorder())
        assert "--gradient-checkpointing" not in str(refused.value)

    def test_a_given_size_stays(self, settings, memory):
        calls = memory(2)
        message = (
            "full at micro-batch 4 in step 1; use --micro-batch-size 2, or --micro-batch-size auto"
        )
        with pytest.raises(ConfigError, match=message):
            train(settings(micro_batch_size=4), Recorder())
        assert calls == [4]


@pytest.fixture
def card():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.cuda.empty_cache()
    yield torch.device("cuda", 0)
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.gpu
class TestOnACard:
    def run(self, asked, recorder=None):
        """Train, and say how much memory was in use at most and is in use now."""
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        train(asked, recorder or Recorder())
        gc.collect()
        return torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()

    def long(self, tmp_path, settings, **changes):
        """Texts and batches so large that activations take most of the memory."""
        data = tmp_path / "long.json"
        record = {"content": "类型#裙" * 300, "summary": "清新" * 300}
        data.write_text("\n".join([json.dumps(record, ensure_ascii=False)] * 64), encoding="utf-8")
        values = {"data": (data,), "device": "cuda", "dtype": "float32", "batch_size": 64}
        values |= {"max_source_length": 1024, "max_target_length": 1024, "max_steps": 2}
        return settings(**values | {"save_steps": 100, "prefix_dropout": 0.0} | changes)

    def test_memory_that_is_really_full(self, settings, tmp_path, card):
        small = self.long(tmp_path, settings, micro_batch_size=16, output=tmp_path / "small")
        needed, left = self.run(small)
        whole = self.long(tmp_path, settings, micro_batch_size=64, output=tmp_path / "whole")
        assert self.run(whole)[0] > 2 * needed
        total = torch.cuda.get_device_properties(card).total_memory
        torch.cuda.set_per_process_memory_fraction(1.5 * needed / total)
        monkey = pytest.MonkeyPatch()
        monkey.setattr(StepMemory, "first_micro_batch", lambda self, rows, device: rows)
        recorder = Recorder()
        asked = self.long(tmp_path, settings, micro_batch_size="auto", output=tmp_path / "auto")
        _, after = self.run(asked, recorder)
        monkey.undo()
        assert recorder.notices and "memory is full at micro-batch 64;" in recorder.notices[0]
        assert after <= left + 2**20  # the failed tries have left nothing
        found, expected = (
            [line["loss"] for line in log_lines(run.output)] for run in (asked, whole)
        )
        assert found == pytest.approx(expected, rel=1e-4)

    def test_one_record_too_many_is_advice(self, settings, tmp_path, card):
        total = torch.cuda.get_device_properties(card).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**24) / total)
        asked = self.long(tmp_path, settings, micro_batch_size="auto")
        with pytest.raises(ConfigError, match="memory is full"):
            train(asked, Recorder())

    @pytest.mark.parametrize("generation", [1, 2])
    def test_float16_with_its_loss_scale_is_float32(self, generation, settings, tmp_path, card):
        traces = []
        for dtype in ("float16", "float32"):
            output = tmp_path / dtype
            changes = {"device": "cuda", "dtype": dtype, "prefix_dropout": 0.0, "max_steps": 20}
            train(settings(generation, output=output, **changes), Recorder())
            lines = [line for line in log_lines(output) if "loss" in line]
            assert len(lines) == 20
            traces.append([[line[name] for line in lines] for name in ("loss", "grad_norm")])
        assert traces[0][0] == pytest.approx(traces[1][0], rel=5e-3)
        assert traces[0][1] == pytest.approx(traces[1][1], rel=0.15)
