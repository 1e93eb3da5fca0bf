"""The KV cache of slots: what is written where, and what attention gets."""

import math

import pytest
import torch
from fixtures.checkpoints import small_case

from ptune import load_model
from ptune.generation.kv_cache import SlotCache
from ptune.models.prefix_encoder import stack_prefix

PREFIX = 5


@pytest.fixture(params=[1, 2])
def decoder(request, model_folder):
    folder = model_folder(small_case(request.param))
    return load_model(folder, folder / "prefix", dtype="float32", device="cpu").base_model


@pytest.fixture
def cache(decoder):
    """Slots 0 and 1 with the prefix, 2 without."""
    cache = SlotCache(decoder, 3, 16, torch.float32, torch.device("cpu"))
    prefix = stack_prefix(decoder.prefix_encoder, torch.float32)
    with torch.inference_mode():
        cache.begin([0, 1, 2], [prefix, prefix, None])
    return cache


def states(cache, batch, length, value):
    _, heads, _, width = cache.layers[0].keys.shape
    return torch.full((batch, heads, length, width), float(value))


def test_slots_hold_their_prefixes(cache, decoder):
    for layer, (key, value) in zip(
        cache.layers, decoder.prefix_encoder(2, torch.float32), strict=True
    ):
        assert torch.equal(layer.keys[:2, :, :PREFIX], key)
        assert torch.equal(layer.values[:2, :, :PREFIX], value)
        assert not layer.keys[:, :, PREFIX:].any() and not layer.keys[2].any()
    assert [cache.prefix_length(slot) for slot in range(3)] == [PREFIX, PREFIX, 0]
    assert cache.cache_position.flatten().tolist() == [15] * 3  # behind the prompts to come


def test_a_prefix_that_is_there_is_not_written_again(cache):
    prefix = cache._prefixes[0]
    before = cache.layers[0].keys.clone()
    with torch.inference_mode():
        prefix.mul_(2)
        cache.begin([1, 2], [prefix, prefix])
    assert torch.equal(cache.layers[0].keys[:2], before[:2])
    assert torch.equal(cache.layers[0].keys[2, :, :PREFIX], 2 * before[0, :, :PREFIX])


def test_prompts_go_into_their_slots_behind_their_prefixes(cache):
    prompts = cache.for_prefill([2, 0], [3, 2])
    assert (prompts.end, prompts.starts.tolist()) == (PREFIX + 2, [0, PREFIX])
    new = torch.cat([states(cache, 1, 3, 7), states(cache, 1, 3, 8)])
    keys, values = prompts.update(new, -new, 1)
    layer = cache.layers[1]
    assert torch.equal(keys, layer.keys[[2, 0], :, : PREFIX + 2])
    assert torch.equal(values, layer.values[[2, 0], :, : PREFIX + 2])
    assert layer.keys[2, 0, :, 0].tolist() == [7] * 3 + [0] * 13
    assert layer.values[0, 0, PREFIX:, 0].tolist() == [-8] * 2 + [0] * 8 + [-8]  # padding: the last
    assert not layer.keys[1, :, PREFIX:].any() and not cache.layers[0].keys[:, :, PREFIX:].any()
    assert all(part.is_initialized for part in (*cache.layers, *prompts.layers))


@pytest.mark.parametrize(("slot", "start"), [(0, PREFIX), (2, 0)])
def test_prompts_with_equal_prefixes(cache, slot, start):
    new = states(cache, 1, 4, 7)
    keys, values = cache.for_prefill([slot], [4]).update(new, -new, 1)
    assert torch.equal(keys, cache.layers[1].keys[[slot], :, : start + 4])
    assert torch.equal(values, cache.layers[1].values[[slot], :, : start + 4])
    assert (keys[:, :, start:] == 7).all()


def test_all_is_made_in_one_precision_and_on_one_device(decoder):
    """Where another device is the default of the calling program."""
    with torch.no_grad(), torch.device("meta"):
        cache = SlotCache(decoder, 3, 16, torch.bfloat16, torch.device("cpu"))
        cache.advance()
        cache.resize(3, 32)
        made = [cache.mask(), *(states for x in cache.layers for states in (x.keys, x.values))]
    assert {(tensor.dtype, tensor.device.type) for tensor in made} == {(torch.bfloat16, "cpu")}


def test_a_step_writes_each_slot_at_its_own_position(cache):
    cache.cache_position[:, 0, 0, 0] = torch.tensor([9, 6, 15])
    cache.attended = 10
    assert cache.get_seq_length() == 9 and cache.get_mask_sizes(1, 0) == (10, 0)
    assert cache.layers[0].get_max_length() == -1  # none that the library could hold it to
    for layer in cache.layers:
        layer.keys.zero_()
    keys, _ = cache.update(states(cache, 3, 1, 4), states(cache, 3, 1, 5), 0)
    assert keys.shape[2] == 10
    assert (cache.layers[0].keys[:, 0, :, 0] == 4).nonzero().tolist() == [[0, 9], [1, 6], [2, 15]]
    assert (cache.layers[0].values[:, 0, :, 0] == 5).nonzero().tolist() == [[0, 9], [1, 6], [2, 15]]
    assert (cache.mask() == 0).sum(dim=-1).flatten().tolist() == [10, 7, 10]
    assert cache.mask()[1, 0, 0, 6:8].tolist() == [0, -math.inf]
    cache.advance()
    assert cache.cache_position.flatten().tolist() == [10, 7, 15]  # the last stays inside


def test_a_step_of_the_first_rows(cache):
    cache.rows = 2
    keys, _ = cache.update(states(cache, 2, 1, 4), states(cache, 2, 1, 5), 0)
    assert len(keys) == 2 and cache.mask().shape == (2, 1, 1, 16)
    assert (cache.layers[0].keys[:, 0, 15, 0]).tolist() == [4, 4, 0]
    cache.cache_position.fill_(3)
    cache.advance()
    assert cache.cache_position.flatten().tolist() == [4, 4, 3]


@pytest.mark.parametrize(("slots", "length"), [(3, 32), (5, 16), (2, 8), (4, 9)])
def test_resizing_keeps_what_fits(cache, slots, length):
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    cache.cache_position[:, 0, 0, 0] = torch.tensor([9, 6, 15])
    cache.resize(slots, length)
    assert cache.length == cache.attended == length
    kept = min(slots, 3)
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert layer.keys.shape[0] == slots and layer.keys.shape[2] == length
        assert torch.equal(layer.keys[:kept, :, :16], keys[:kept, :, :length])
        assert torch.equal(layer.values[:kept, :, :16], values[:kept, :, :length])
        assert not layer.keys[kept:].any() and not layer.keys[:, :, 16:].any()
    expected = [min(position, length - 1) for position in (9, 6, 15)][:kept]
    assert cache.cache_position.flatten().tolist() == expected + [0] * (slots - kept)
    assert [cache.prefix_length(slot) for slot in range(slots)][:2] == [PREFIX, PREFIX]


def test_a_prefix_that_no_longer_fits_is_written_anew(cache):
    """Also where its last position is the one that steps of free slots write to."""
    prefix = cache._prefixes[0]
    for length in (PREFIX, PREFIX - 2):
        cache.resize(3, length)
        cache.resize(3, 16)
        with torch.inference_mode():
            cache.begin([1], [prefix])
        assert torch.equal(cache.layers[0].keys[1, :, :PREFIX], prefix[0, 0])
        assert torch.equal(cache.layers[1].values[1, :, :PREFIX], prefix[1, 1])


def test_slots_are_moved_and_wiped(cache):
    cache.cache_position[:, 0, 0, 0] = torch.tensor([9, 6, 15])
    cache.move(1, 2)
    layer = cache.layers[1]
    assert torch.equal(layer.keys[2], layer.keys[1]) and layer.values[2].any()
    assert cache.cache_position.flatten().tolist() == [9, 6, 6]
    assert cache.prefix_length(2) == PREFIX
    layer.keys[1, 0, 3] = math.nan
    cache.wipe(1)
    assert not layer.keys[1].any() and not layer.values[1].any() and cache.prefix_length(1) == 0
