"""Seeds as functions of what they are for."""

import torch

from ptune.data.seeds import derive_seed


def test_known_value():
    """A change would give every run another result than before."""
    assert (
        derive_seed(42, "dropout", 7, 3)
        == derive_seed("42", "dropout", 7, 3)
        == 7830669820551318301
    )


def test_all_parts_count_and_their_order():
    found = [derive_seed(*parts) for parts in [(1, 2), (2, 1), (12,), (1, "a"), (1, 2, 0)]]
    assert len(set(found)) == len(found)


def test_torch_takes_them():
    seeds = [derive_seed(1, step) for step in range(100)]
    assert all(0 <= seed < 2**63 for seed in seeds) and max(seeds) > 2**60
    torch.Generator().manual_seed(max(seeds))
