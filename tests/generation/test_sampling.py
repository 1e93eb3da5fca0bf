"""Sampling, against the library's."""

import pytest
import torch

from ptune.generation.sampling import Sampling

HOT = Sampling(do_sample=True, top_p=1.0, temperature=3.0)


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
    assert Sampling().choose(logits).ids.tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_takes_the_first_of_equals(dtype):
    """As the library's argmax; in half precision, there are many."""
    logits = torch.randint(0, 4, (50, 3000), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(Sampling().choose(logits).ids, logits.argmax(dim=-1))


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(do_sample=True), HOT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_score_is_finite_where_the_logits_are(sampling, dtype):
    rows = [[NAN, 1, 0], [0, 1, NAN], [1, INF, 0], [INF, INF, NAN], [-INF, -INF, -INF]]
    logits = torch.tensor([*rows, [-INF, 9, -INF], [9, -INF, -INF]], dtype=dtype)
    ids, scores = sampling.choose(logits)
    assert scores.isfinite().tolist() == [False] * 5 + [True] * 2
    assert ids[5:].tolist() == [1, 0]
    assert all(0 <= token < 3 for token in ids.tolist()), "the next step looks it up"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_draws_in_half_precision_are_those_of_float32(dtype):
    logits = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    drawn = []
    for scores in (logits, logits.float()):
        torch.manual_seed(1)
        drawn.append(HOT.choose(scores).ids.tolist())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("top_p", "temperature"), [(0.7, 0.95), (1.0, 1.0), (0.3, 3.0), (1.0, 0.5), (1.0, 2.0)]
)
def test_draws_come_from_the_nucleus(top_p, temperature):
    """Of 200 tokens, those that top-k and top-p leave by definition, as often as they should."""
    logits = torch.randn(200, generator=torch.Generator().manual_seed(0)) * 3
    sampling = Sampling(1, do_sample=True, top_p=top_p, temperature=temperature)
    torch.manual_seed(1)
    draws = sampling.choose(logits.expand(20_000, -1)).ids
    best, ids = (logits / temperature).softmax(0).sort(descending=True)
    best = best[:50] / best[:50].sum()
    before = best.cumsum(0) - best
    left = ids[:50][before < top_p]
    assert set(draws.tolist()) <= set(left.tolist())
    share = (draws == left[0]).float().mean().item()
    expected = (best[0] / best[before < top_p].sum()).item()
    assert share == pytest.approx(expected, abs=0.02)
