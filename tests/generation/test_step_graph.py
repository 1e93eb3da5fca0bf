"""Captured decode steps: the same tokens as eager steps.

All but the first test need a card: `pytest -m gpu tests/generation/test_step_graph.py`.
"""

import logging

import pytest
import torch
from fixtures.checkpoints import golden_case, small_case, small_ids

from ptune import load_model
from ptune.generation.generate import generate_all, generate_one
from ptune.generation.sampling import Sampling
from ptune.generation.step_graph import StepGraph

LENGTHS = (9, 16, 5, 12, 7, 11, 4, 8)
CPU = torch.device("cpu")


def test_without_a_card_a_step_is_just_run():
    calls = []
    step = StepGraph(lambda: torch.tensor(calls.append(1) or len(calls)), CPU)
    assert not step.captures
    assert [int(step()), int(step())] == [1, 2]
    step.reset()
    assert int(step()) == 3


class Counter:
    """A step that counts on the card, and how often its Python code is run."""

    def __init__(self):
        self.count = torch.zeros(1, device="cuda")
        self.runs = 0

    def __call__(self):
        self.runs += 1
        self.count += 1
        return self.count * 10


@pytest.fixture
def card():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA card")
    return torch.device("cuda")


@pytest.mark.gpu
def test_a_step_is_run_captured_and_replayed(card):
    counter = Counter()
    step = StepGraph(counter, card)
    assert [step().item() for _ in range(5)] == [10, 20, 30, 40, 50]
    assert counter.runs == 2
    step.reset()
    assert [step().item() for _ in range(3)] == [60, 70, 80]
    assert counter.runs == 4


@pytest.mark.gpu
def test_a_step_that_cannot_be_captured_runs_eagerly(card, caplog):
    counter = Counter()

    def waits():
        result = counter()
        result.item()
        return result

    step = StepGraph(waits, card)
    with caplog.at_level(logging.WARNING, "ptune"):
        results = [step().item() for _ in range(4)]
    assert results == [10, 20, 30, 40]
    (record,) = caplog.records
    assert record.getMessage().startswith("no CUDA graph of a step (")
    assert record.getMessage().endswith("); generating without, slower")
    assert not step.captures
    assert torch.rand(4, device=card).unique().numel() == 4  # random numbers come as before


@pytest.fixture(params=[1, 2])
def case(request):
    return small_case(request.param)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", ["none", "4"])
def test_replayed_steps_give_the_same_tokens(card, case, model_folder, dtype, bits):
    """With admission into free slots, a cache that grows, and requests of different lengths."""
    folder = model_folder(case)
    model = load_model(folder, folder / "prefix", dtype, "cuda", bits)
    prompts = [small_ids(case, length, seed).tolist() for seed, length in enumerate(LENGTHS * 4)]
    sampling = Sampling(max_new_tokens=140)

    def found(batch_size, graphs):
        groups = generate_all(model, prompts, batch_size, sampling, graphs=graphs)
        return dict(pair for group in groups for pair in group)

    model.generation_config.eos_token_id = []
    endless = found(16, graphs=False)
    model.generation_config.eos_token_id = [endless[i][4 * i + 3] for i in range(8)]
    for batch_size in (1, 7, 16):
        plain = found(batch_size, graphs=False)
        assert len({len(ids) for ids in plain.values()}) > 3
        assert found(batch_size, graphs=True) == plain


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["v1", "v1-projection", "v1-int4", "v2", "v2-int4", "v3"])
def test_golden_continuations(card, name, model_folder):
    case, folder = golden_case(name), model_folder(name, "safetensors", 1)
    model = load_model(folder, folder / "prefix", "float32", "cuda")
    model.generation_config.eos_token_id = []
    pad = case["config"]["pad_token_id"]
    prompts = [[token for token in row if token != pad] for row in case["prompt_ids"]]
    for batch_size in (1, 3, 4):
        groups = generate_all(model, prompts, batch_size, Sampling(16))
        found = dict(pair for group in groups for pair in group)
        assert [found[i] for i in range(len(prompts))] == case["new_ids_prefix"]
    for prompt, expected in zip(prompts, case["new_ids_prefix"], strict=True):
        assert list(generate_one(model, prompt, Sampling(16))) == expected


@pytest.mark.gpu
def test_sampling_is_repeatable_by_seed(card, case, model_folder):
    folder = model_folder(case)
    model = load_model(folder, folder / "prefix", "float32", "cuda")
    prompts = [small_ids(case, length, seed).tolist() for seed, length in enumerate(LENGTHS)]
    sampling = Sampling(max_new_tokens=20, do_sample=True, top_p=0.9, temperature=2.0)

    def sample(seed, graphs=True):
        groups = generate_all(model, prompts, 3, sampling, seed, graphs=graphs)
        return dict(pair for group in groups for pair in group)

    assert sample(1) == sample(1) == sample(1, graphs=False)
    assert sample(1) != sample(2)


@pytest.mark.gpu
def test_memory_is_freed(card, model_folder):
    case = small_case(1)
    folder = model_folder(case)
    model = load_model(folder, folder / "prefix", "float32", "cuda")
    prompts = [small_ids(case, length, seed).tolist() for seed, length in enumerate(LENGTHS)]

    def run():
        list(generate_all(model, prompts, 4, Sampling(100)))
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    first = run()
    assert run() == first
