"""Sampling, against its definition and the library's logits processors."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from ptune.generation.drawing import uniform
from ptune.generation.sampling import Sampler, Sampling

HOT = Sampling(do_sample=True, top_p=1.0, temperature=3.0)


def choose(sampling, logits, seeds=None):
    """A token for each row, the requests differing in their seeds alone."""
    sampler = Sampler(len(logits), logits.shape[1], torch.device("cpu"))
    seeds = range(len(logits)) if seeds is None else seeds
    requests = [([0], dataclasses.replace(sampling, seed=seed)) for seed in seeds]
    sampler.begin(range(len(logits)), requests)
    return sampler.choose(logits, range(len(logits)))


def test_arguments():
    assert Sampling(6).arguments() == {"max_new_tokens": 6, "do_sample": False}
    assert Sampling(9, do_sample=True, top_p=0.5, temperature=2.0).arguments() == {
        "max_new_tokens": 9,
        "do_sample": True,
        "top_p": 0.5,
        "temperature": 2.0,
        "top_k": 50,  # as the original, whose library has it by default
    }


def test_greedy_is_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 1.5]])
    assert choose(Sampling(), logits).ids.tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [3000, 3072])  # the latter in blocks
def test_greedy_takes_the_first_of_equals(dtype, vocabulary):
    """As the library's argmax; in half precision, there are many."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 4, (50, vocabulary), generator=generator).to(dtype)
    assert torch.equal(choose(Sampling(), logits).ids, logits.argmax(dim=-1))


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(do_sample=True), HOT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [3, 1024])  # the latter in blocks
def test_score_is_finite_where_the_logits_are(sampling, dtype, vocabulary):
    rows = [[NAN, 1, 0], [0, 1, NAN], [1, INF, 0], [INF, INF, NAN], [-INF, -INF, -INF]]
    logits = torch.tensor([*rows, [-INF, 9, -INF], [9, -INF, -INF]], dtype=dtype)
    logits = F.pad(logits, (0, vocabulary - 3), value=-INF)
    ids, scores, _ = choose(sampling, logits)
    assert scores.isfinite().tolist() == [False] * 5 + [True] * 2
    assert ids[5:].tolist() == [1, 0]
    assert all(0 <= token < vocabulary for token in ids.tolist()), "the next step looks it up"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_draws_in_half_precision_are_those_of_float32(dtype):
    logits = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    drawn = []
    for scores in (logits, logits.float()):
        drawn.append(choose(HOT, scores).ids.tolist())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("top_p", "temperature"), [(0.7, 0.95), (1.0, 1.0), (0.3, 3.0), (1.0, 0.5), (1.0, 2.0)]
)
def test_draws_come_from_the_nucleus(top_p, temperature):
    """Of 200 tokens, those that top-k and top-p leave by definition, as often as they should."""
    logits = torch.randn(200, generator=torch.Generator().manual_seed(0)) * 3
    sampling = Sampling(1, do_sample=True, top_p=top_p, temperature=temperature)
    draws = choose(sampling, logits.expand(20_000, -1)).ids
    best, ids = (logits / temperature).softmax(0).sort(descending=True)
    best = best[:50] / best[:50].sum()
    before = best.cumsum(0) - best
    left = ids[:50][before < top_p]
    assert set(draws.tolist()) <= set(left.tolist())
    share = (draws == left[0]).float().mean().item()
    expected = (best[0] / best[before < top_p].sum()).item()
    assert share == pytest.approx(expected, abs=0.02)


def test_a_draw_follows_from_the_seed_and_the_place_alone():
    """Not from the other rows, their parameters, or the slot."""
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    kinds = [HOT, Sampling(do_sample=True), Sampling(do_sample=True, top_k=0, top_p=0.9)]
    kinds += [
        Sampling(do_sample=True, top_k=100, top_p=0.95),
        Sampling(do_sample=True, top_k=0, top_p=1.0),
    ]
    for kind in kinds:
        own = dataclasses.replace(kind, seed=7)
        alone = Sampler(1, 300, torch.device("cpu"))
        alone.begin([0], [([0], own)])
        among = Sampler(6, 300, torch.device("cpu"))
        others = [*kinds[:4], Sampling()]
        among.begin([4, 0, 1, 2, 3, 5], [([0], s) for s in (own, *others)])
        for row in logits:
            batch = logits.clone()
            batch[4] = row
            expected = alone.choose(row[None], [0]).ids[0]
            assert among.choose(batch, range(6)).ids[4] == expected
        among.move(4, 5)
        assert among.choose(logits, range(6)).ids[5] == alone.choose(logits[5:], [0]).ids[0]


def test_seeds_and_places_draw_alike_and_apart():
    """Uniform numbers: mean, spread, and no relation between neighbours."""
    seeds = torch.arange(20_000)
    drawn = torch.stack([uniform(seeds, torch.full_like(seeds, n)) for n in range(3)])
    assert (drawn > 0).all() and (drawn < 1).all()
    assert drawn.mean(1).sub(0.5).abs().max() < 0.01
    assert drawn.var(1).sub(1 / 12).abs().max() < 0.002
    assert torch.corrcoef(torch.cat([drawn, drawn.roll(1, 1)])).fill_diagonal_(0).abs().max() < 0.03


def test_penalties_are_the_librarys_and_openais():
    """Repetition by the library's processor; the others by their definition."""
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    prompt = [3, 4, 5, 3]
    sampler = Sampler(2, 50, torch.device("cpu"))
    sampler.begin([0, 1], [(prompt, Sampling(repetition_penalty=1.7)), (prompt, Sampling())])
    said = list(prompt)
    for _ in range(8):
        expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([said]), logits[:1].clone())
        ids = sampler.choose(logits, [0, 1]).ids
        assert ids[0] == expected.argmax() and ids[1] == logits[1].argmax()
        said.append(int(ids[0]))
    assert len(set(said[4:])) > 1
    sampler.begin([1], [(prompt, Sampling(presence_penalty=0.4, frequency_penalty=0.3))])
    counts = torch.zeros(50)
    for _ in range(12):
        scores = logits[1] - 0.4 * (counts > 0) - 0.3 * counts
        token = int(sampler.choose(logits, [0, 1]).ids[1])
        assert token == scores.argmax()
        counts[token] += 1
    assert counts.max() > 1 and (counts > 0).sum() > 1
    sampler.resize(3)
    sampler.move(1, 2)
    scores = logits[1] - 0.4 * (counts > 0) - 0.3 * counts
    assert sampler.choose(logits[1:], [2]).ids[0] == scores.argmax()


def test_log_probabilities():
    """Of rows that ask, before penalties and temperature."""
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(3, 50, torch.device("cpu"))
    asking = Sampling(do_sample=True, temperature=2.0, presence_penalty=1.0, logprobs=3)
    sampler.begin([0, 1, 2], [([0], Sampling()), ([0], asking), ([0], Sampling(logprobs=0))])
    choice = sampler.choose(logits, [0, 1, 2])
    found = choice.logprobs.by_row()
    assert found.keys() == {1, 2}
    for row, (logprob, likeliest) in found.items():
        expected = logits[row].log_softmax(0)
        assert logprob == pytest.approx(expected[choice.ids[row]].item(), abs=1e-6)
        assert len(likeliest) == 20 and likeliest[0][0] == logits[row].argmax()
        assert likeliest[7][1] == pytest.approx(expected.sort(descending=True)[0][7].item())
