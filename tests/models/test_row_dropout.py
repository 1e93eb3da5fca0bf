"""Dropout as a function of a row's seed."""

import pytest
import torch

from ptune.models.row_dropout import RowDropout

SEEDS = [5, 6, 7, 8]


def dropped(states, seeds, p=0.5):
    dropout = RowDropout(p)
    dropout.row_seeds = seeds
    return dropout(states)


def test_a_row_loses_the_same_whatever_is_beside_it():
    states = torch.ones(6, 1, 3, 5).expand(-1, 4, -1, -1)
    whole = dropped(states, SEEDS)
    parts = [dropped(states[:, :2], SEEDS[2:]), dropped(states[:, :1], SEEDS[1:2])]
    assert torch.equal(whole[:, 2:], parts[0]) and torch.equal(whole[:, 1:2], parts[1])
    assert not torch.equal(whole[:, 0], whole[:, 1])


def test_share_scale_and_gradient():
    states = torch.ones(100, 1, 200, requires_grad=True)
    found = dropped(states.expand(-1, 4, -1), SEEDS, p=0.1)
    assert found.unique().tolist() == [0.0, pytest.approx(1 / 0.9)]
    assert (found == 0).float().mean().item() == pytest.approx(0.1, abs=0.005)
    found.sum().backward()
    assert torch.allclose(states.grad, found.sum(dim=1, keepdim=True))


def test_draws_nothing_from_torchs_generator():
    before = torch.get_rng_state()
    dropped(torch.ones(2, 4, 3), SEEDS)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_seeds_it_follows_from_torchs_generator():
    states = torch.ones(6, 4, 50)
    torch.manual_seed(3)
    first, second = dropped(states, None), dropped(states, None)
    torch.manual_seed(3)
    assert torch.equal(dropped(states, None), first) and not torch.equal(first, second)


def test_off_when_evaluating_or_without_probability():
    states = torch.ones(2, 4, 3)
    assert dropped(states, None, p=0.0) is states
    assert RowDropout(0.5).eval()(states) is states


def test_as_many_seeds_as_rows():
    with pytest.raises(ValueError, match="zip"):
        dropped(torch.ones(2, 3, 3), SEEDS)
