"""Where the micro-batch starts, and what is said to need less memory."""

import pytest
import torch
from fixtures.checkpoints import changed, small_case

from ptune import load_model
from ptune.base.folder import find_base_model
from ptune.config.settings import TrainSettings
from ptune.device.host_memory import HostMemory
from ptune.device.memory import training_bytes
from ptune.training import step_memory
from ptune.training.step_memory import describe_step

CPU = torch.device("cpu")


@pytest.fixture
def describe(model_folder, tmp_path):
    def describe(case, longest=40, bits=None, **changes):
        folder = model_folder(case)
        model = load_model(folder, folder / "prefix", quantization_bit=bits)
        values = {"data": (tmp_path / "x.json",), "max_target_length": 16} | changes
        return describe_step(TrainSettings(**values), find_base_model(folder), model, longest)

    return describe


@pytest.mark.parametrize("generation", [1, 2])
def test_follows_from_settings_model_and_records(describe, generation):
    step = describe(small_case(generation), bits=8, gradient_checkpointing=True)
    assert step.architecture.num_layers == 2 and step.architecture.hidden_size == 32
    assert (step.storage.itemsize, step.storage.quantization) == (4, "8")
    assert step.storage.device_type == "cpu"
    assert (step.training.source_length, step.training.target_length) == (24, 16)
    assert step.training.trained.pre_seq_len == 5 and step.training.gradient_checkpointing


def test_records_shorter_than_the_response_length(describe):
    step = describe(small_case(1), longest=10, max_target_length=64)
    assert (step.training.source_length, step.training.target_length) == (1, 9)


def test_micro_batch_grows_with_the_free_memory(describe, monkeypatch):
    step = describe(small_case(1))
    found = []
    for available in (0, 10**6, 2 * 10**6, 4 * 10**6, 10**10):
        memory = HostMemory(10**11, available)
        monkeypatch.setattr(step_memory, "read_host_memory", lambda memory=memory: memory)
        found.append(step.first_micro_batch(12, CPU))
    assert found[0] == 1 and found[-1] == 12
    assert found == sorted(found) and len(set(found)) >= 3
    assert all(12 % count == 0 for count in found)


def test_memory_that_nobody_knows(describe, monkeypatch):
    monkeypatch.setattr(step_memory, "read_host_memory", lambda: None)
    assert describe(small_case(1)).first_micro_batch(6, CPU) == 6


def test_a_card_counts_what_torch_holds_unused(describe, monkeypatch):
    step = describe(small_case(1))
    card = torch.device("cuda", 0)
    sizes = {"mem_get_info": (10**6, 10**11), "memory_reserved": 10**9, "memory_allocated": 0}
    for name, size in sizes.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    assert step.first_micro_batch(16, card) == 16
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10**9)
    assert step.first_micro_batch(16, card) < 16


def test_savings_are_named_with_their_size(describe):
    texts = [str(saving) for saving in describe(small_case(1)).savings()]
    options = [text.split(" (saves")[0] for text in texts]
    assert options[:2] == ["--quantization-bit 8", "--quantization-bit 4"]
    assert options[-1] == "--max-source-length 12 --max-target-length 8"
    assert all(text.endswith(" MB)") for text in texts)


def test_savings_leave_out_what_is_in_use(describe):
    options = [
        s.option for s in describe(small_case(1), bits=8, gradient_checkpointing=True).savings()
    ]
    assert "--quantization-bit 8" not in options and "--gradient-checkpointing" not in options
    stored = describe(changed(small_case(1), quantization_bit=8))
    assert not [s for s in stored.savings() if "quantization" in s.option]
    assert training_bytes(stored.architecture, stored.storage, stored.training).total > 0
