"""The prefix: shapes, layout, dropout, and how it enters caches."""

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, GlmConfig, StaticCache

from ptune.errors import ModelError
from ptune.models.prefix_encoder import (
    PrefixEncoder,
    PrefixShape,
    build_prefix_encoder,
    extend_mask,
    prefix_disabled,
    prefix_length,
    show_prefix,
    text_length,
)

SHAPE = PrefixShape(num_layers=3, num_kv_heads=2, head_dim=4, hidden_size=16, projection_input=10)
CONFIG = GlmConfig(num_hidden_layers=3, num_attention_heads=4, hidden_size=16)


def decoder():
    encoder = PrefixEncoder(SHAPE, 5, dropout=0.0)
    return SimpleNamespace(prefix_encoder=encoder, prefix_enabled=True, training=False)


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


def grown(layer_cache, text=1.0):
    """Give two layers three new tokens; the keys that the second one sees."""
    new = torch.full((2, 2, 3, 4), text)
    layer_cache.update(new, new, 0)
    return layer_cache.update(new, -new, 1)


def test_prefix_is_shown_but_not_stored_without_a_cache():
    """So that gradient checkpointing, which runs a layer twice, sees the same keys."""
    cache = show_prefix(decoder(), None, torch.zeros(2, 3, 16))
    for _ in range(2):
        key, value = grown(cache)
        assert key.shape == value.shape == (2, 2, 8, 4)
        assert torch.equal(key[:, :, 5:], -value[:, :, 5:])
        assert cache.get_seq_length() == 5 and cache.get_mask_sizes(3, 0) == (8, 0)


@pytest.mark.parametrize(
    "text", [DynamicCache(), DynamicCache(config=CONFIG), StaticCache(CONFIG, 9)], ids=str
)
def test_prefix_is_shown_and_text_is_stored(text):
    toy, embeds = decoder(), torch.zeros(2, 3, 16)
    pairs = toy.prefix_encoder(1, torch.float32)
    for stored in (0, 3, 6):
        cache = show_prefix(toy, text, embeds)
        assert text_length(text) == text_length(cache) == stored
        assert cache.get_seq_length(0) == 5 + stored
        size = 9 if isinstance(text, StaticCache) else stored + 3
        assert cache.get_mask_sizes(3, 0) == (5 + size, 0)
        key, value = grown(cache)
        assert key.shape == value.shape == (2, 2, 5 + size, 4)
        assert torch.equal(key[:, :, :5], pairs[1][0].expand(2, -1, -1, -1))
        assert torch.equal(value[:, :, :5], pairs[1][1].expand(2, -1, -1, -1))
        assert (key[:, :, 5 : 8 + stored] == 1).all()


def test_prefix_of_a_cache_is_that_of_its_first_text():
    toy, text, embeds = decoder(), DynamicCache(), torch.zeros(2, 3, 16)
    first, _ = grown(show_prefix(toy, text, embeds))
    with torch.no_grad():
        toy.prefix_encoder.embedding.weight += 1
    later, _ = grown(show_prefix(toy, text, embeds))
    assert torch.equal(later[:, :, :8], first)
    text.reset()
    anew, _ = grown(show_prefix(toy, text, embeds))
    torch.testing.assert_close(anew[:, :, :5], first[:, :, :5] + 1)


def test_cache_of_another_prefix():
    toy, text, embeds = decoder(), DynamicCache(), torch.zeros(2, 3, 16)
    grown(show_prefix(toy, text, embeds))
    toy.prefix_enabled = False
    with pytest.raises(ModelError, match=r"holds 3 tokens .* prefix of 5, .* one of 0 tokens now"):
        show_prefix(toy, text, embeds)
    bare = DynamicCache()
    grown(show_prefix(toy, bare, embeds))
    toy.prefix_enabled = True
    with pytest.raises(ModelError, match=r"prefix of 0, .* one of 5 tokens now; compute them"):
        show_prefix(toy, bare, embeds)


def test_without_a_prefix():
    toy, text, embeds = decoder(), DynamicCache(), torch.zeros(2, 3, 16)
    with prefix_disabled(SimpleNamespace(base_model=toy)):
        assert prefix_length(toy) == 0
        assert show_prefix(toy, None, embeds) is None
        assert show_prefix(toy, text, embeds) is text
    assert prefix_length(toy) == 5
    toy.prefix_encoder = None
    assert prefix_length(toy) == 0


def test_prefix_that_was_off_stays_off():
    toy = decoder()
    toy.prefix_enabled = False
    with prefix_disabled(SimpleNamespace(base_model=toy)):
        assert not toy.prefix_enabled
    assert not toy.prefix_enabled


def test_built_from_a_configuration():
    config = SimpleNamespace(pre_seq_len=7, prefix_projection=True)
    prefix = build_prefix_encoder(SHAPE, config)
    assert (prefix.pre_seq_len, prefix.prefix_projection, prefix.dropout.p) == (7, True, 0)
    assert build_prefix_encoder(SHAPE, SimpleNamespace(pre_seq_len=None)) is None


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
    seen = torch.tensor([[[[True, False]]]])
    assert extend_mask(seen, 1).tolist() == [[[[True, True, False]]]]
    added = torch.tensor([[[[0.0, -9.0]]]])
    assert extend_mask(added, 1).tolist() == [[[[0.0, 0.0, -9.0]]]]
