"""Rotation against the formula written out, and its gradient."""

import torch

from ptune.models.rotary import RotaryEmbedding, split_heads

BATCH, LENGTH, HEADS, DIM = 2, 5, 3, 16


def by_formula(states, position_ids):
    """Turn `[B, S, H, D]` as the original does: each half by its own positions."""
    inv_freq = RotaryEmbedding(DIM // 2).inv_freq.to(states.dtype)
    halves = []
    for half, positions in zip(states.chunk(2, -1), position_ids, strict=True):
        angles = (positions[..., None] * inv_freq)[:, :, None].repeat(1, 1, 1, 2)
        left, right = half.chunk(2, -1)
        halves.append(half * angles.cos() + torch.cat([-right, left], -1) * angles.sin())
    return torch.cat(halves, -1)


def angles():
    position_ids = torch.randint(0, 50, (2, BATCH, LENGTH))
    return position_ids, *RotaryEmbedding(DIM // 2).double()(position_ids, torch.float64)


def test_turns_queries_and_keys_and_leaves_values():
    position_ids, cos, sin = angles()
    assert cos.shape == sin.shape == (BATCH, LENGTH, 2, DIM // 4)
    fused = torch.randn(BATCH, LENGTH, HEADS, 3 * DIM, dtype=torch.float64)
    query, key, value = (t.transpose(1, 2) for t in split_heads(fused, cos, sin))
    expected = fused.chunk(3, -1)
    torch.testing.assert_close(query, by_formula(expected[0], position_ids), atol=1e-5, rtol=0)
    torch.testing.assert_close(key, by_formula(expected[1], position_ids), atol=1e-5, rtol=0)
    assert torch.equal(value, expected[2])
    assert not torch.allclose(query, expected[0])


def test_gradient():
    _, cos, sin = angles()
    fused = torch.randn(BATCH, LENGTH, HEADS, 3 * DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: split_heads(x, cos, sin), fused)


def test_in_training_a_query_keeps_no_key_alive():
    _, cos, sin = angles()
    fused = torch.randn(BATCH, LENGTH, HEADS, 3 * DIM, dtype=torch.float64, requires_grad=True)
    query, _, _ = split_heads(fused, cos, sin)
    assert query.untyped_storage().nbytes() == query.numel() * 8


def test_with_and_without_gradient_alike():
    _, cos, sin = angles()
    fused = torch.randn(BATCH, LENGTH, HEADS, 3 * DIM, dtype=torch.float64, requires_grad=True)
    for one, other in zip(
        split_heads(fused, cos, sin), split_heads(fused.detach(), cos, sin), strict=True
    ):
        assert torch.equal(one, other)
