"""The KV cache of slots: what is written where, and what attention gets."""

import math

import pytest
import torch
from fixtures.checkpoints import small_case

from ptune import load_model
from ptune.generation.kv_cache import SlotCache

PREFIX = 5


@pytest.fixture(params=[1, 2])
def decoder(request, model_folder):
    folder = model_folder(small_case(request.param))
    return load_model(folder, folder / "prefix", dtype="float32", device="cpu").base_model


@pytest.fixture
def cache(decoder):
    with torch.no_grad():
        return SlotCache(decoder, 3, 16, torch.float32, torch.device("cpu"))


def states(cache, batch, length, value):
    _, heads, _, width = cache.layers[0].keys.shape
    return torch.full((batch, heads, length, width), float(value))


def test_every_slot_holds_the_prefix(cache, decoder):
    assert cache.prefix == PREFIX
    for layer, (key, value) in zip(
        cache.layers, decoder.prefix_encoder(3, torch.float32), strict=True
    ):
        assert torch.equal(layer.keys[:, :, :PREFIX], key)
        assert torch.equal(layer.values[:, :, :PREFIX], value)
        assert not layer.keys[:, :, PREFIX:].any()


def test_prompts_go_into_their_slots(cache):
    prompts = cache.for_prefill(torch.tensor([2, 0]))
    assert prompts.get_seq_length() == PREFIX
    new = torch.cat([states(cache, 1, 4, 7), states(cache, 1, 4, 8)])
    keys, values = prompts.update(new, -new, 1)
    layer = cache.layers[1]
    assert torch.equal(keys, torch.cat([layer.keys[[2, 0], :, :PREFIX], new], dim=2))
    assert torch.equal(values[:, :, PREFIX:], -new)
    assert layer.keys[2, 0, PREFIX : PREFIX + 4, 0].tolist() == [7] * 4
    assert layer.values[0, 0, PREFIX : PREFIX + 4, 0].tolist() == [-8] * 4
    assert not layer.keys[1, :, PREFIX:].any() and not cache.layers[0].keys[:, :, PREFIX:].any()
    keys, _ = cache.for_prefill(torch.tensor([1])).update(new[:1], new[:1], 1)
    assert torch.equal(keys, torch.cat([layer.keys[[1], :, :PREFIX], new[:1]], dim=2))
    assert all(part.is_initialized for part in (*cache.layers, *prompts.layers))


def test_all_is_made_in_one_precision_and_on_one_device(decoder):
    """Where another device is the default of the calling program."""
    with torch.no_grad(), torch.device("meta"):
        cache = SlotCache(decoder, 3, 16, torch.bfloat16, torch.device("cpu"))
        cache.advance()
        cache.resize(32)
        made = [cache.mask(), *(states for x in cache.layers for states in (x.keys, x.values))]
    assert {(tensor.dtype, tensor.device.type) for tensor in made} == {(torch.bfloat16, "cpu")}


def test_a_step_writes_each_slot_at_its_own_position(cache):
    cache.cache_position[:, 0, 0, 0] = torch.tensor([9, 6, 15])
    cache.attended = 10
    assert cache.get_seq_length() == 9 and cache.get_mask_sizes(1, 0) == (10, 0)
    assert cache.layers[0].get_max_length() == -1  # none that the library could hold it to
    keys, _ = cache.update(states(cache, 3, 1, 4), states(cache, 3, 1, 5), 0)
    assert keys.shape[2] == 10
    assert (cache.layers[0].keys[:, 0, :, 0] == 4).nonzero().tolist() == [[0, 9], [1, 6], [2, 15]]
    assert (cache.layers[0].values[:, 0, :, 0] == 5).nonzero().tolist() == [[0, 9], [1, 6], [2, 15]]
    assert (cache.mask() == 0).sum(dim=-1).flatten().tolist() == [10, 7, 10]
    assert cache.mask()[1, 0, 0, 6:8].tolist() == [0, -math.inf]
    cache.advance()
    assert cache.cache_position.flatten().tolist() == [10, 7, 15]  # the last stays inside


def test_growing_keeps_the_content(cache):
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    cache.resize(32)
    assert cache.length == cache.attended == 32
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys[:, :, :16], keys) and not layer.keys[:, :, 16:].any()
        assert torch.equal(layer.values[:, :, :16], values)


def test_kept_slots_are_renumbered(cache):
    cache.cache_position[:, 0, 0, 0] = torch.tensor([9, 6, 15])
    cache.update(
        torch.stack([states(cache, 1, 1, v)[0] for v in (1, 2, 3)]), states(cache, 3, 1, 0), 0
    )
    cache.keep(torch.tensor([2, 0]))
    assert cache.cache_position.flatten().tolist() == [15, 9]
    assert cache.layers[0].keys[0, 0, 15, 0] == 3 and cache.layers[0].keys[1, 0, 9, 0] == 1
