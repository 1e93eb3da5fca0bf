"""The prefix: shapes, layout, dropout, and how it enters caches."""

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, GlmConfig

from ptune.models.prefix_encoder import (
    PrefixEncoder,
    PrefixShape,
    extend_mask,
    inject_prefix,
    prefix_disabled,
    prefix_length,
)

SHAPE = PrefixShape(num_layers=3, num_kv_heads=2, head_dim=4, hidden_size=16, projection_input=10)


def decoder(dropout=0.0):
    return SimpleNamespace(
        prefix_encoder=PrefixEncoder(SHAPE, 5, dropout=dropout),
        prefix_enabled=True,
        config=GlmConfig(num_hidden_layers=3),
    )


def test_parameter_names_and_shapes():
    plain = PrefixEncoder(SHAPE, 5).state_dict()
    assert {name: tuple(t.shape) for name, t in plain.items()} == {"embedding.weight": (5, 48)}
    projected = PrefixEncoder(SHAPE, 5, prefix_projection=True).state_dict()
    assert {name: tuple(t.shape) for name, t in projected.items()} == {
        "embedding.weight": (5, 10),
        "trans.0.weight": (16, 10),
        "trans.0.bias": (16,),
        "trans.2.weight": (48, 16),
        "trans.2.bias": (48,),
    }


def test_layout_of_keys_and_values():
    """A row of the embedding: layer 0's key, its value, layer 1's key and so on, head by head."""
    encoder = PrefixEncoder(SHAPE, 5, dropout=0.0)
    with torch.no_grad():
        encoder.embedding.weight.copy_(torch.arange(5 * 48.0).view(5, 48))
    pairs = encoder(2, torch.float32)
    assert len(pairs) == 3
    for layer, (key, value) in enumerate(pairs):
        assert key.shape == value.shape == (2, 2, 5, 4)
        for states, start in ((key, 16 * layer), (value, 16 * layer + 8)):
            assert states[1, 1, 3].tolist() == [48 * 3 + start + 4 + d for d in range(4)]
            assert states[0, 0, 0].tolist() == [start + d for d in range(4)]


@pytest.mark.parametrize("prefix_projection", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_gradients(prefix_projection, dtype):
    encoder = PrefixEncoder(SHAPE, 5, prefix_projection)
    pairs = encoder(3, dtype)
    assert {t.dtype for pair in pairs for t in pair} == {dtype}
    sum(key.sum() + (value**2).sum() for key, value in pairs).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in encoder.parameters())


def test_dropout_is_drawn_for_each_row():
    encoder = PrefixEncoder(SHAPE, 50, dropout=0.5)
    torch.manual_seed(0)
    (key, value), *_ = encoder(2, torch.float32)
    assert not torch.equal(key[0], key[1])
    assert 0.4 < (key == 0).float().mean() < 0.6
    encoder.eval()
    (key, value), *_ = encoder(2, torch.float32)
    assert torch.equal(key[0], key[1]) and not (value == 0).any()


def test_prefix_is_shown_but_not_stored_without_a_cache():
    """So that gradient checkpointing, which runs a layer twice, sees the same keys."""
    cache = inject_prefix(decoder(), None, use_cache=False, inputs_embeds=torch.zeros(2, 7, 16))
    assert cache.get_seq_length() == 5
    new = torch.ones(2, 2, 7, 4)
    for _ in range(2):
        key, value = cache.update(new, new, 1)
        assert key.shape == value.shape == (2, 2, 12, 4)
        assert torch.equal(key[:, :, 5:], new)
    assert cache.get_seq_length() == 5


@pytest.mark.parametrize("given", [True, False])
def test_prefix_opens_an_empty_cache(given):
    toy = decoder()
    cache = DynamicCache(config=toy.config) if given else None
    filled = inject_prefix(toy, cache, use_cache=True, inputs_embeds=torch.zeros(2, 7, 16))
    assert filled is cache or not given
    assert filled.get_seq_length() == 5
    new = torch.ones(2, 2, 7, 4)
    key, _ = filled.update(new, new, 0)
    assert key.shape[2] == 12 == filled.get_seq_length()
    again = inject_prefix(toy, filled, use_cache=True, inputs_embeds=torch.zeros(2, 1, 16))
    assert again is filled and filled.get_seq_length() == 12, "the prefix is there once"


def test_without_a_prefix():
    toy = decoder()
    with prefix_disabled(SimpleNamespace(base_model=toy)):
        assert prefix_length(toy) == 0
        assert inject_prefix(toy, None, False, torch.zeros(2, 7, 16)) is None
        assert inject_prefix(toy, None, True, torch.zeros(2, 7, 16)).get_seq_length() == 0
    assert prefix_length(toy) == 5
    toy.prefix_encoder = None
    assert prefix_length(toy) == 0


def test_disabled_prefix_comes_back_after_an_error():
    toy = decoder()
    with pytest.raises(RuntimeError), prefix_disabled(SimpleNamespace(base_model=toy)):
        raise RuntimeError
    assert toy.prefix_enabled


def test_extended_mask():
    mask = torch.tensor([[0, 1], [1, 1]])
    assert extend_mask(mask, 2).tolist() == [[1, 1, 0, 1], [1, 1, 1, 1]]
    assert extend_mask(mask, 0) is mask
    assert extend_mask(None, 2) is None
