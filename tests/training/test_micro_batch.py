"""Micro-batches: splitting a batch, and halving when memory is full."""

import re

import pytest
import torch

from ptune.data.examples import StepCollator
from ptune.errors import ConfigError
from ptune.training.micro_batch import MicroBatch, Saving, split

CPU = torch.device("cpu")
SAVINGS = [Saving("--quantization-bit 8", 5_640_000_000), Saving("shorter texts", 2_500_000)]


def test_split_trims_to_the_longest_of_each():
    rows = [list(range(1, n + 1)) for n in (2, 5, 3, 7, 4)]
    batch = StepCollator(pad_token_id=0)([{"input_ids": row, "labels": row} for row in rows])
    assert batch["lengths"] == [7, 5, 4, 3, 2]
    parts, places = zip(*split(batch, 2), strict=True)
    assert places == ([0, 1], [2, 3], [4])
    assert [tuple(part["input_ids"].shape) for part in parts] == [(2, 7), (2, 4), (1, 2)]
    assert all(part.keys() == {"input_ids", "labels"} for part in parts)
    assert parts[1]["input_ids"].tolist() == [[1, 2, 3, 4], [1, 2, 3, 0]]
    assert parts[1]["labels"].tolist() == [[1, 2, 3, 4], [1, 2, 3, -100]]
    storage = batch["labels"].untyped_storage().data_ptr()
    assert all(part["labels"].untyped_storage().data_ptr() == storage for part in parts)


class LimitedMemory:
    """A computation that fits up to some micro-batch."""

    def __init__(self, limit, **changes):
        self.notices, self.tries, self.limit = [], 0, limit
        values = {"size": 8, "auto": True, "savings": lambda: SAVINGS}
        self.micro_batch = MicroBatch(**values | changes, notify=self.notices.append)

    def compute(self):
        self.tries += 1
        if self.micro_batch.size > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return self.micro_batch.size

    def fit(self):
        return self.micro_batch.fit(self.compute, CPU, step=12)


def test_halves_until_it_fits():
    limited = LimitedMemory(3)
    assert limited.fit() == 2
    assert limited.notices == [
        "memory is full at micro-batch 8; continuing with micro-batches of 4 from step 12",
        "memory is full at micro-batch 4; continuing with micro-batches of 2 from step 12",
    ]
    assert limited.fit() == 2
    assert len(limited.notices) == 2


@pytest.mark.parametrize("name", ["mps", "cuda:1"])
def test_on_a_card(monkeypatch, name):
    """Its memory is given back before the next try."""
    device, done = torch.device(name), []
    monkeypatch.setattr(getattr(torch, device.type), "empty_cache", lambda: done.append("emptied"))
    limited = LimitedMemory(4)
    assert limited.micro_batch.fit(limited.compute, device, step=1) == 4
    assert done == ["emptied"]


@pytest.mark.parametrize(("size", "shown"), [(100_000_000, "0.1 GB"), (99_900_000, "99.9 MB")])
def test_savings_are_shown_in_the_unit_that_suits(size, shown):
    assert str(Saving("--option", size)) == f"--option (saves {shown})"


def test_python_that_is_out_of_memory():
    limited = LimitedMemory(8)
    sizes = []

    def compute():
        sizes.append(limited.micro_batch.size)
        if len(sizes) == 1:
            raise MemoryError
        return len(sizes)

    limited.micro_batch.fit(compute, CPU, step=1)
    assert sizes == [8, 4]


def test_odd_sizes_are_rounded_up():
    limited = LimitedMemory(1, size=5)
    limited.fit()
    assert [re.search(r"of (\d)", notice).group(1) for notice in limited.notices] == ["3", "2", "1"]


def test_what_the_failed_try_held_is_free_before_the_next():
    class Activation:
        alive = 0

        def __init__(self):
            Activation.alive += 1
            self.itself = self  # only the garbage collector gets rid of it

        def __del__(self):
            Activation.alive -= 1

    found = []

    def compute():
        found.append(Activation.alive)
        held = Activation()
        if len(found) == 1:
            raise torch.OutOfMemoryError("full")
        return held

    LimitedMemory(8).micro_batch.fit(compute, CPU, step=1)
    assert found == [0, 0]


@pytest.mark.parametrize("auto", [True, False])
def test_a_single_record_that_does_not_fit(auto):
    message = (
        r"memory is full at micro-batch 1 in step 12; use in this order: "
        r"--quantization-bit 8 \(saves 5\.6 GB\), shorter texts \(saves 2\.5 MB\)$"
    )
    with pytest.raises(ConfigError, match=message):
        LimitedMemory(0, size=1, auto=auto).fit()


def test_a_given_size_is_not_changed():
    limited = LimitedMemory(4, auto=False)
    message = (
        "full at micro-batch 8 in step 12; use --micro-batch-size 4, or --micro-batch-size auto$"
    )
    with pytest.raises(ConfigError, match=message):
        limited.fit()
    assert limited.notices == [] and limited.tries == 1


def test_memory_that_is_full_in_another_process():
    """All halve, and compute the step again."""
    limited = LimitedMemory(8)
    answers = iter([None, 4])  # the others at the first meeting, and at the second
    met = []

    def meet(computed):
        met.append(computed)
        return next(answers)

    assert limited.micro_batch.fit(limited.compute, CPU, 12, meet) == 4
    assert met == [8, 4]
    assert limited.notices == [
        "memory is full at micro-batch 8; continuing with micro-batches of 4 from step 12"
    ]


def test_memory_that_is_full_here_is_told_to_the_others():
    limited = LimitedMemory(4)
    met = []
    limited.micro_batch.fit(
        limited.compute, CPU, 12, lambda computed: met.append(computed) or met[-1]
    )
    assert met == [None, 4]


def test_full_in_another_process_at_a_given_size():
    limited = LimitedMemory(8, auto=False)
    message = "full at micro-batch 8 in step 12; use --micro-batch-size 4, or --micro-batch-size"
    with pytest.raises(ConfigError, match=message):
        limited.micro_batch.fit(limited.compute, CPU, 12, lambda computed: None)
    assert limited.tries == 1


def test_other_errors_pass():
    def compute():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        LimitedMemory(8).micro_batch.fit(compute, CPU, step=1)
