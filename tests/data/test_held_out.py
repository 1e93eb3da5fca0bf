"""Records held out of training."""

import pytest

from ptune.data.held_out import split_records


@pytest.mark.parametrize(
    ("records", "fraction", "held"), [(100, 0.1, 10), (10, 0.001, 1), (2, 0.99, 1), (3, 0.5, 2)]
)
def test_shares(records, fraction, held):
    train, dev = split_records(records, fraction, seed=1)
    assert len(dev) == held
    assert sorted(train + dev) == list(range(records)) and train == sorted(train)
    assert dev == sorted(dev)


def test_seed_decides_which():
    assert split_records(1000, 0.1, 1) == split_records(1000, 0.1, 1)
    assert split_records(1000, 0.1, 1)[1] != split_records(1000, 0.1, 2)[1]


def test_known_draw():
    """A change would let old checkpoints be measured by what they were trained on."""
    assert split_records(20, 0.2, 42)[1] == [0, 4, 9, 13]
