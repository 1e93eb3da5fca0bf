"""Slots of a decoder: a captured step is dropped when what it used is replaced."""

import pytest
import torch
from fixtures.checkpoints import small_case, small_ids

from ptune import load_model
from ptune.generation import decoding
from ptune.generation.decoding import Decoder, Prompt
from ptune.generation.sampling import Sampling
from ptune.models.prefix_encoder import shown_prefix


class Captured:
    """In the place of `StepGraph`: a step keeps using what it used first, as a captured one."""

    captures = True

    def __init__(self, run, device, capture):
        self.run, self.decoder = run, run.func.__self__
        self.used = None

    def __call__(self):
        cache, decoder = self.decoder._cache, self.decoder
        uses = [layer.keys.data_ptr() for layer in cache.layers], cache.attended
        tensors = (cache.cache_position, decoder._tokens, decoder._positions)
        uses = *uses, *(tensor.data_ptr() for tensor in tensors)
        self.used = self.used or uses
        assert self.used == uses, "a captured step would write to what is gone"
        return self.run()


@pytest.fixture(params=[1, 2])
def case(request):
    return small_case(request.param)


@pytest.fixture
def decoder(case, model_folder, monkeypatch):
    monkeypatch.setattr(decoding, "StepGraph", Captured)
    folder = model_folder(case)
    model = load_model(folder, folder / "prefix", dtype="float32", device="cpu")
    return Decoder(model, 3, longest=400)


def prompt(case, decoder, length, seed=0, new=100):
    ids = small_ids(case, length, seed).tolist()
    return Prompt(ids, Sampling(new), shown_prefix(decoder.model))


def prefill(decoder, slots, prompts):
    return decoder.advance(decoder.begin(slots, prompts), 99).ids


def test_the_cache_grows(case, decoder):
    """And the tokens are those of a cache that was large from the beginning."""
    prompts = [prompt(case, decoder, length, seed) for seed, length in enumerate((9, 20, 6))]
    found = [prefill(decoder, [0, 1, 2], prompts)]
    lengths = {decoder._cache.length}
    for _ in range(200):
        found.append(decoder.step(3).ids)
        lengths.add(decoder._cache.length)
    assert len(lengths) > 2
    for row, asked in zip(torch.stack(found, dim=1).tolist(), prompts, strict=True):
        options = {"max_new_tokens": 201, "do_sample": False, "eos_token_id": None}
        expected = decoder.model.generate(torch.tensor([asked.ids]), **options)
        assert row == expected[0, len(asked.ids) :].tolist()


def test_slots_are_moved_and_their_number_changes(case, decoder):
    """With the tokens that a request has where nothing moves."""
    asked = [prompt(case, decoder, 9, seed) for seed in range(3)]
    prefill(decoder, [0, 1, 2], asked)
    expected = [decoder.step(3).ids[2].item() for _ in range(4)]
    decoder = Decoder(decoder.model, 3, longest=400)
    prefill(decoder, [0, 1, 2], asked)
    found = [decoder.step(3).ids[2].item()]
    decoder.release(0)
    decoder.move(2, 0)
    found.append(decoder.step(2).ids[0].item())
    decoder.release(1)
    decoder.resize(1)
    found.append(decoder.step(1).ids[0].item())
    decoder.resize(5)
    found.append(decoder.step(1).ids[0].item())
    assert found == expected and decoder.slots == 5


@pytest.mark.parametrize("captured", [True, False])
def test_steps_attend_to_no_more_than_is_in_use(case, decoder, captured, monkeypatch):
    """Only a captured one attends to the whole cache, whose size does not change."""
    monkeypatch.setattr(Captured, "captures", captured)
    decoder._graphs = captured
    prefix = decoder.model.config.pre_seq_len
    prefill(decoder, [0, 1], [prompt(case, decoder, length) for length in (9, 20)])
    decoder.step(2)
    cache = decoder._cache
    assert cache.attended == (cache.length if captured else prefix + 21)
    decoder.release(1)
    decoder.step(1)
    assert cache.attended == (cache.length if captured else prefix + 11)


def test_a_prefill_some_layers_at_a_time(case, decoder):
    """With decode steps of another request between, which it does not change."""
    asked = [prompt(case, decoder, 9, seed) for seed in range(2)]
    firsts = [prefill(decoder, [0], asked[:1])]
    expected = [decoder.step(1).ids[0].item() for _ in range(3)]
    decoder = Decoder(decoder.model, 3, longest=400)
    alone = prefill(decoder, [0], asked[1:]).item(), decoder.step(1).ids[0].item()
    decoder = Decoder(decoder.model, 3, longest=400)
    firsts.append(prefill(decoder, [0], asked[:1]))
    assert torch.equal(*firsts)
    part = decoder.begin([2], asked[1:])
    found = [decoder.step(3).ids[0].item()]
    assert decoder.advance(part, 1) is None
    found.append(decoder.step(3).ids[0].item())
    first = decoder.advance(part, 1).ids.item()
    step = decoder.step(3).ids
    assert [*found, step[0].item()] == expected
    assert (first, step[2].item()) == alone


def test_device_is_the_models_whatever_the_default_is(decoder):
    with torch.device("meta"):
        made = Decoder(decoder.model, 2, longest=9)
    assert made._tokens.device == decoder.model.device
