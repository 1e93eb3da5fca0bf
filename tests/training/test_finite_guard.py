"""Losses and gradients that are not finite: skipped steps, what is saved, and how a run ends."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fixtures.runs import Recorder, folders_in, interrupt, log_lines, prefix_of
from safetensors.torch import load_file

from ptune import load_model
from ptune.checkpoint import method as method_module
from ptune.checkpoint.prefix import attach_prefix
from ptune.errors import TrainingError
from ptune.training import train as train_module
from ptune.training.finite_guard import FiniteGuard
from ptune.training.log import TrainLog
from ptune.training.loss_scale import LossScale
from ptune.training.train import train

KEY = "transformer.prefix_encoder.embedding.weight"
NAN, INF = math.nan, math.inf


@pytest.fixture
def on_prefix(monkeypatch):
    """Do something to the prefix of the next run as soon as the model has it."""

    def register(change):
        def attach(model, prefix):
            attach_prefix(model, prefix)
            change(prefix)

        monkeypatch.setattr(method_module, "attach_prefix", attach)

    return register


def spoil_gradient(on_prefix, is_spoilt):
    """Make the gradient infinite in backward passes `is_spoilt(n)`, counted from 1."""
    passes = []

    def hook(gradient):
        passes.append(None)
        return gradient * INF if is_spoilt(len(passes)) else gradient

    on_prefix(lambda prefix: prefix.embedding.weight.register_hook(hook))


def narrow(on_prefix, margin):
    """A layer as some models have it: float16 overflows when a value has moved by `margin`.

    It is the identity but for the range of float16, so up to there training is what it was.
    """

    def change(prefix):
        starts = []

        def hook(module, inputs, pairs):
            if not starts:
                starts.extend(value.detach() for _, value in pairs)
            return [
                (key, value + (value - start) * (65504 / margin) * 0)
                for (key, value), start in zip(pairs, starts, strict=True)
            ]

        prefix.register_forward_hook(hook)

    on_prefix(change)


def overflow_at_once(on_prefix):
    """The same for a model that float16 does not suit at all."""

    def hook(module, inputs, pairs):
        return [(key, value + value.abs().clamp(1) * 1e5 * 0) for key, value in pairs]

    on_prefix(lambda prefix: prefix.register_forward_hook(hook))


def skipped(output):
    return [line["step"] for line in log_lines(output) if "skipped" in line]


@pytest.fixture
def half(settings):
    """Settings of a run in float16 without dropout, one batch of everything a step."""

    def make(**changes):
        values = {"dtype": "float16", "prefix_dropout": 0.0, "batch_size": 10, "max_steps": 40}
        values |= {"micro_batch_size": "auto", "learning_rate": 2e-2, "warmup_steps": 0}
        return settings(**values | changes)

    return make


class TestOverflow:
    """Row 8 of the problems with the original: float16, learning rate 2e-2, and loss 0.0."""

    def test_run_ends_with_a_good_checkpoint(self, half, on_prefix):
        narrow(on_prefix, margin=0.09)  # Adam moves a value by about the learning rate a step
        asked, recorder = half(save_steps=2), Recorder()
        with pytest.raises(TrainingError) as ended:
            train(asked, recorder)
        steps = skipped(asked.output)
        first = steps[0]
        assert first > 3 and steps == list(range(first, first + 10))
        last = folders_in(asked.output)[-1]
        assert int(last.removeprefix("checkpoint-")) in (first - 2, first - 3)
        assert str(ended.value) == (
            f"loss is not finite in 10 steps in a row, up to step {steps[-1]}; the last good "
            f"checkpoint is {asked.output / last}; go on with the same command and "
            f"--dtype float32, or start from it with --init-prefix {asked.output / last}, a lower "
            "--learning-rate and --fresh, and look at the data with `ptune preview`"
        )
        assert not (asked.output / "prefix_encoder.safetensors").exists()
        assert all(math.isfinite(line.get("loss", 0)) for line in log_lines(asked.output))
        reasons = {line["skipped"] for line in log_lines(asked.output) if "skipped" in line}
        assert reasons == {"loss is not finite"}
        told = [text for text in recorder.notices if "it is skipped" in text]
        assert told == [f"loss is not finite at step {first}; it is skipped"]

        model = load_model(asked.model, asked.output / last, device="cpu", dtype="float32")
        assert torch.isfinite(model(torch.tensor([[9, 301, 304, 8]])).logits).all()
        # The advice is followed: in float32 the same run comes to its end.
        done = train(half(dtype="float32", save_steps=100), Recorder())
        assert done.steps == 40

    def test_prefix_ruined_by_the_step_before_a_save_is_not_saved(self, half, on_prefix):
        narrow(on_prefix, margin=0.09)
        asked, recorder = half(save_steps=1), Recorder()
        with pytest.raises(TrainingError):
            train(asked, recorder)
        first = skipped(asked.output)[0]
        # Step first - 1 had a good loss and moved the prefix to where there is none.
        assert folders_in(asked.output)[-1] == f"checkpoint-{first - 2}"
        withheld = [text for text in recorder.notices if "not written" in text]
        assert withheld == [
            f"checkpoint-{first - 1} is not written: its prefix gives no finite loss"
        ]

    def test_at_the_last_step(self, half, on_prefix):
        narrow(on_prefix, margin=0.01)
        asked = half(max_steps=1)
        with pytest.raises(
            TrainingError, match="loss is not finite after the last step, 1; there is no good"
        ):
            train(asked, Recorder())
        assert folders_in(asked.output) == [] and skipped(asked.output) == []

    def test_without_a_checkpoint(self, half, on_prefix):
        overflow_at_once(on_prefix)
        asked = half(dtype="bfloat16")
        assert train(asked, Recorder()).steps == 40  # it has the range
        again = half(output=asked.output / "again")
        message = (
            "loss is not finite in 10 steps in a row, up to step 10; there is no good checkpoint "
            "yet; train again with --dtype float32 or a lower --learning-rate, and look"
        )
        overflow_at_once(on_prefix)
        with pytest.raises(TrainingError, match=message):
            train(again, Recorder())
        assert folders_in(again.output) == []

    def test_ctrl_c_amid_skipped_steps_is_no_success(self, half, on_prefix):
        overflow_at_once(on_prefix)
        with pytest.raises(TrainingError, match="in 2 steps in a row, up to step 2; there is no"):
            train(half(), Recorder({2: interrupt}))


class TestSkippedStep:
    def test_changes_nothing_and_is_left_out_of_the_mean(self, settings, on_prefix):
        def broken(model, inputs, *args, **kwargs):
            nonlocal passes
            passes += 1
            loss = compute(model, inputs, *args, **kwargs)
            return loss * NAN if passes == 2 else loss

        passes, prefixes = 0, []
        trainer_class = train_module.AdapterTrainer
        compute = None

        class Broken(trainer_class):
            def compute_loss(self, *args, **kwargs):
                nonlocal compute
                compute = super().compute_loss
                return broken(*args, **kwargs)

        on_prefix(prefixes.append)
        weights = []
        note = lambda: weights.append(prefixes[0].embedding.weight.detach().clone())  # noqa: E731
        train_module.AdapterTrainer = Broken
        try:
            asked = settings(
                max_steps=4, micro_batch_size=4, logging_steps=4, save_steps=4, prefix_dropout=0.0
            )
            recorder = Recorder({1: note, 2: note, 3: note})
            assert train(asked, recorder).steps == 4
        finally:
            train_module.AdapterTrainer = trainer_class
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[1], weights[2])
        skip, line = log_lines(asked.output)
        assert skip == {"step": 2, "skipped": "loss is not finite"}
        assert 4 < line["loss"] < 8  # a mean over three steps, not over four
        assert recorder.notices == [
            "loss is not finite at step 2; it is skipped",
            "steps skipped in this run: 1; see `skipped` in train_log.jsonl",
        ]

    @pytest.mark.parametrize("spoilt", [{2}, {1, 3}])
    def test_optimizer_does_not_count_it(self, spoilt, settings, on_prefix):
        spoil_gradient(on_prefix, lambda n: n in spoilt)
        asked = settings(max_steps=4, micro_batch_size=4)
        train(asked, Recorder())
        state = load_file(asked.output / "checkpoint-4" / "optimizer.safetensors")
        assert state["embedding.weight/step"].item() == 4 - len(spoilt)
        assert skipped(asked.output) == sorted(spoilt)

    def test_gradients_alone_end_with_a_checkpoint_of_the_prefix(self, settings, on_prefix):
        spoil_gradient(on_prefix, lambda n: n > 3)
        asked = settings(max_steps=30, micro_batch_size=4, save_steps=2)
        message = (
            "gradient is not finite in 10 steps in a row, up to step 13; .*/checkpoint-13; start "
        )
        with pytest.raises(TrainingError, match=message + "from it with --init-prefix"):
            train(asked, Recorder())
        saved = prefix_of(asked.output / "checkpoint-13")[KEY]
        assert torch.isfinite(saved).all()
        # Nothing moved in the skipped steps.
        assert torch.equal(saved, prefix_of(asked.output / "checkpoint-12")[KEY])
        norms = [line.get("grad_norm") for line in log_lines(asked.output) if "loss" in line]
        assert all(math.isfinite(norm) for norm in norms[:3]) and set(norms[3:]) == {None}

    def test_run_that_ends_in_skipped_steps_says_so(self, settings, on_prefix):
        spoil_gradient(on_prefix, lambda n: n > 3)
        recorder = Recorder()
        assert train(settings(max_steps=6, micro_batch_size=4), recorder).steps == 6
        assert recorder.notices == [
            "gradient is not finite at step 4; it is skipped",
            "steps skipped in this run: 3, of them 3 at its end; see `skipped` in train_log.jsonl",
        ]


class TestLossScale:
    def test_losses_and_gradients_are_those_of_float32(self, half):
        traces = []
        for dtype in ("float16", "float32"):
            asked = half(dtype=dtype, max_steps=6, output=half().output / dtype)
            asked.output.parent.mkdir(exist_ok=True)
            train(asked, Recorder())
            lines = log_lines(asked.output)
            traces.append([[line[name] for line in lines] for name in ("loss", "grad_norm")])
        (losses, norms), (expected_losses, expected_norms) = traces
        assert losses == pytest.approx(expected_losses, rel=2e-3)
        assert norms == pytest.approx(expected_norms, rel=5e-2)
        assert losses != expected_losses

    def test_gradients_too_small_for_float16_are_kept(self, half, monkeypatch):
        """Those of a loss made smaller by 1e6 are below what float16 holds."""
        compute = train_module.AdapterTrainer.compute_loss
        small = lambda *args, **kwargs: compute(*args, **kwargs) * 1e-6  # noqa: E731
        monkeypatch.setattr(train_module.AdapterTrainer, "compute_loss", small)
        norms = []
        for factor in (2.0**16, 1.0):
            begin = lambda self, *args, f=factor, **kwargs: setattr(self, "factor", f)  # noqa: E731
            monkeypatch.setattr(LossScale, "on_train_begin", begin)
            asked = half(max_steps=1, output=half().output.with_name(f"out-{factor:g}"))
            train(asked, Recorder())
            norms.append(log_lines(asked.output)[0]["grad_norm"])
        assert norms[0] > 1e-9
        assert norms[1] == 0

    def test_an_overflow_under_a_high_scale_does_not_count(self, half, monkeypatch):
        scales = []

        def overflowing(self, loss, norm, judge=FiniteGuard.judge):
            scales.append(self.loss_scale.factor)
            return judge(self, loss, norm if self.loss_scale.factor <= 1 else INF)

        monkeypatch.setattr(FiniteGuard, "judge", overflowing)
        asked, recorder = half(max_steps=18), Recorder()
        assert train(asked, recorder).steps == 18
        assert scales == [2.0**n for n in range(16, -1, -1)] + [1.0]
        assert skipped(asked.output) == list(range(1, 17))
        assert log_lines(asked.output)[0]["loss_scale"] == 2**15
        assert recorder.notices == []

    def test_at_scale_one_it_counts(self, half, monkeypatch):
        def overflowing(self, loss, norm, judge=FiniteGuard.judge):
            return judge(self, loss, INF)

        monkeypatch.setattr(FiniteGuard, "judge", overflowing)
        recorder = Recorder()
        with pytest.raises(TrainingError, match="gradient is not finite in 26 steps in a row"):
            train(half(save_steps=100), recorder)
        assert recorder.notices == ["gradient is not finite at step 17; it is skipped"]

    def test_resumed_run_is_bit_exact(self, half, monkeypatch):
        monkeypatch.setattr(LossScale, "GROWTH_INTERVAL", 3)

        def run(name, recorder, **changes):
            output = half().output.with_name(name)
            return train(half(output=output, max_steps=8, save_steps=100, **changes), recorder)

        straight = run("straight", Recorder()).output
        run("stopped", Recorder({4: interrupt}))
        resumed = run("stopped", Recorder()).output
        assert torch.equal(prefix_of(resumed)[KEY], prefix_of(straight)[KEY])
        states = [
            json.loads((output / "checkpoint-8" / "trainer_state.json").read_text())
            for output in (straight, resumed)
        ]
        scales = [state["stateful_callbacks"]["LossScale"]["attributes"] for state in states]
        assert scales[0] == scales[1] == {"factor": 2.0**18, "good_steps": 2}

    def test_float32_has_none(self, settings):
        asked = settings(max_steps=1)
        train(asked, Recorder())
        state = json.loads((asked.output / "checkpoint-1" / "trainer_state.json").read_text())
        assert "LossScale" not in state["stateful_callbacks"]


@pytest.fixture
def guard(tmp_path):
    return FiniteGuard(TrainLog(tmp_path / "train_log.jsonl", 4, Recorder()))


class TestRules:
    def test_before_the_first_step_nothing_is_wrong(self, guard):
        """As in a run that is resumed at its end."""
        assert guard.loss_is_finite and guard.reason is None and not guard.gave_up

    def test_ten_in_a_row(self, guard):
        for loss in [NAN] * 9 + [1.0] + [INF] * 9:
            guard.judge(loss, 1.0)
        assert not guard.gave_up
        guard.judge(1.0, NAN)
        assert guard.gave_up
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        state = SimpleNamespace(global_step=20, is_world_process_zero=False)
        guard.on_step_end(None, state, control)
        assert control.should_save and control.should_training_stop

    def test_a_row_is_told_once_and_the_next_one_again(self, guard):
        control = SimpleNamespace()
        for step, loss in enumerate([NAN, NAN, 1.0, NAN], 1):
            guard.judge(loss, 1.0)
            state = SimpleNamespace(global_step=step, is_world_process_zero=True)
            guard.on_step_end(None, state, control)
        told = guard.log.reporter.notices
        assert [int(re.search(r"step (\d)", text).group(1)) for text in told] == [1, 4]
        assert skipped(guard.log.file.parent) == [1, 2, 4]

    def test_mean_over_the_steps_that_had_a_loss(self, guard):
        for loss in (2.0, NAN, 4.0, NAN):
            guard.judge(loss, 1.0)
        logs = {"loss": (2.0 + 4.0) / 4, "grad_norm": 0.0}
        guard.correct(logs)
        assert logs == {"loss": 3.0}
        guard.judge(5.0, 1.0)
        logs = {"loss": 5.0, "grad_norm": 1.0}
        guard.correct(logs)
        assert logs == {"loss": 5.0, "grad_norm": 1.0}

    @pytest.mark.parametrize("norm", [{"grad_norm": 0.0}, {}])
    def test_no_loss_at_all(self, guard, norm):
        guard.judge(NAN, NAN)
        logs = {"loss": 0.0, "learning_rate": 0.1, **norm}
        guard.correct(logs)
        assert logs == {"learning_rate": 0.1}
        assert guard.log.reporter.notices == []

    def test_loss_of_exactly_zero_is_told_once(self, guard):
        for _ in range(2):
            guard.judge(0.0, 0.0)
            guard.correct({"loss": 0.0})
        assert guard.log.reporter.notices == [
            "the loss is exactly 0.0, nothing is left to learn or nothing is learnt from; "
            "look at the data with `ptune preview`"
        ]

    @pytest.mark.parametrize("skipped", [0, 10])
    @pytest.mark.parametrize(
        ("checkpoint", "wider", "advice"),
        [
            (
                "out/checkpoint-4",
                "float32",
                "the last good checkpoint is out/checkpoint-4; go on with the same command and "
                "--dtype float32, or start from it with --init-prefix out/checkpoint-4, a lower "
                "--learning-rate and --fresh",
            ),
            (
                "out/checkpoint-4",
                None,
                "the last good checkpoint is out/checkpoint-4; start from it with --init-prefix "
                "out/checkpoint-4, a lower --learning-rate and --fresh",
            ),
            (
                None,
                "float32",
                "there is no good checkpoint yet; train again with --dtype float32 or a lower "
                "--learning-rate",
            ),
            (
                None,
                None,
                "there is no good checkpoint yet; train again with a lower --learning-rate",
            ),
        ],
    )
    def test_error_of_the_end(self, guard, skipped, checkpoint, wider, advice):
        for _ in range(skipped):
            guard.judge(1.0, INF)
        error = guard.error(14, checkpoint and Path(checkpoint), wider)
        reason = (
            "gradient is not finite in 10 steps in a row, up to step 14"
            if skipped
            else "loss is not finite after the last step, 14"
        )
        assert str(error) == f"{reason}; {advice}, and look at the data with `ptune preview`"
