"""Answers in batches: the same as one by one, cut at the stop, in a known order."""

from types import SimpleNamespace

import pytest
import torch
from checkpoints import small_case, small_ids

from ptune import load_model
from ptune.generate import Sampling, generate_all

LENGTHS = (9, 16, 5, 12, 7)
GREEDY = Sampling(max_new_tokens=6)


@pytest.fixture(params=[1, 2, 3])
def case(request):
    return small_case(request.param)


@pytest.fixture
def model(case, model_folder):
    folder = model_folder(case)
    return load_model(folder, folder / "prefix", dtype="float32", device="cpu")


@pytest.fixture
def prompts(case):
    return [small_ids(case, length, seed).tolist() for seed, length in enumerate(LENGTHS)]


def answers(model, prompts, batch_size=2, sampling=GREEDY):
    found = {}
    for batch in generate_all(model, prompts, batch_size, sampling):
        found |= dict(batch)
    return [found[i] for i in range(len(prompts))]


class Scripted:
    """A model that answers every prompt with the same ids, and remembers what it was given."""

    device = torch.device("cpu")
    generation_config = SimpleNamespace(eos_token_id=[2, 90], pad_token_id=0)

    def __init__(self, answer):
        self.answer = answer
        self.calls = []

    def generate(self, input_ids, attention_mask, **kwargs):
        self.calls.append((input_ids.tolist(), attention_mask.tolist(), kwargs))
        answer = torch.tensor([self.answer] * len(input_ids))
        return torch.cat([input_ids, answer], dim=1)


def test_batches_equal_single_prompts(model, prompts):
    alone = [answers(model, [prompt])[0] for prompt in prompts]
    assert len({tuple(answer) for answer in alone}) > 1
    for batch_size in (2, 3, 8):
        assert answers(model, prompts, batch_size) == alone


def test_longest_prompts_come_first_and_keep_their_index():
    model = Scripted([5])
    prompts = [[11], [12, 12, 12], [13, 13], [14] * 4, [15]]
    batches = list(generate_all(model, prompts, 2, GREEDY))
    assert [[i for i, _ in batch] for batch in batches] == [[3, 1], [2, 0], [4]]
    assert model.calls[0][:2] == ([[14] * 4, [0, 12, 12, 12]], [[1] * 4, [0, 1, 1, 1]])
    assert model.calls[2][0] == [[15]]


@pytest.mark.parametrize(
    ("new", "kept"),
    [
        ([5, 6, 2, 0, 0], [5, 6]),
        ([5, 90, 7, 2], [5]),
        ([2, 5], []),
        ([5, 0, 6], [5, 0, 6]),  # padding that was never stopped for is an answer
    ],
)
def test_answer_ends_before_the_first_stop(new, kept):
    assert answers(Scripted(new), [[11]]) == [kept]


def test_stop_of_a_real_model_is_not_in_its_answer(model, prompts):
    full = answers(model, prompts)
    stop = full[0][2]
    model.generation_config.eos_token_id = [stop]
    cut = answers(model, prompts, batch_size=5)
    assert stop not in cut[0] and len(cut[0]) <= 2
    for before, after in zip(full, cut, strict=True):
        assert after == before[: before.index(stop) if stop in before else None]


def test_sampling_is_repeatable_by_seed(model, prompts):
    sampling = Sampling(max_new_tokens=8, do_sample=True, top_p=1.0, temperature=2.0)

    def sample(seed, done=()):
        batches = generate_all(model, prompts, 2, sampling, seed, done)
        return dict(pair for batch in batches for pair in batch)

    whole = sample(1)
    assert whole == sample(1)
    assert whole != sample(2)
    first = next(iter(generate_all(model, prompts, 2, sampling, 1)))
    rest = sample(1, done=[index for index, _ in first])
    assert rest == {i: ids for i, ids in whole.items() if i not in dict(first)}


def test_sampling_arguments():
    assert GREEDY.arguments() == {"max_new_tokens": 6, "do_sample": False}
    model = Scripted([5])
    answers(model, [[11]], sampling=Sampling(9, do_sample=True, top_p=0.5, temperature=2.0))
    assert model.calls[0][2] == {
        "max_new_tokens": 9,
        "do_sample": True,
        "top_p": 0.5,
        "temperature": 2.0,
        "top_k": 50,  # as the original, whose library has it by default
    }


def test_no_prompts_no_batches():
    assert list(generate_all(Scripted([5]), [], 2, GREEDY)) == []
