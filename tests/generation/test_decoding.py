"""Slots of a decoder: a captured step is dropped when what it used is replaced."""

import pytest
import torch
from fixtures.checkpoints import small_case, small_ids

from ptune import load_model
from ptune.generation import decoding
from ptune.generation.decoding import Decoder
from ptune.generation.sampling import Sampling


class Captured:
    """In the place of `StepGraph`: a step keeps using what it used first, as a captured one."""

    def __init__(self, run, device, capture):
        self.run, self.decoder = run, run.__self__
        self.captures = capture
        self.reset()

    def reset(self):
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
    return Decoder(model, 3, Sampling().choose, longest=400)


def test_the_cache_grows(case, decoder):
    """And the tokens are those of a cache that was large from the beginning."""
    prompts = [small_ids(case, length, seed).tolist() for seed, length in enumerate((9, 20, 6))]
    found = [decoder.prefill([0, 1, 2], prompts).ids]
    lengths = {decoder._cache.length}
    for _ in range(200):
        found.append(decoder.step().ids)
        lengths.add(decoder._cache.length)
    assert len(lengths) > 2
    for row, prompt in zip(torch.stack(found, dim=1).tolist(), prompts, strict=True):
        options = {"max_new_tokens": 201, "do_sample": False, "eos_token_id": None}
        expected = decoder.model.generate(torch.tensor([prompt]), **options)
        assert row == expected[0, len(prompt) :].tolist()


def test_slots_are_dropped(case, decoder):
    decoder.prefill([0, 1, 2], [small_ids(case, 9, seed).tolist() for seed in range(3)])
    decoder.step()
    decoder.keep([2, 0])
    decoder.step()
    assert decoder.slots == 2


@pytest.mark.parametrize("captured", [True, False])
def test_steps_attend_to_no_more_than_is_in_use(case, decoder, captured):
    """Only a captured one attends to the whole cache, whose size does not change."""
    decoder._step.captures = captured
    prefix = decoder.model.config.pre_seq_len
    decoder.prefill([0, 1], [small_ids(case, length).tolist() for length in (9, 20)])
    cache = decoder._cache
    assert cache.attended == (cache.length if captured else prefix + 20)
    decoder.release(1)
    decoder.step()
    assert cache.attended == (cache.length if captured else prefix + 10)


def test_device_is_the_models_whatever_the_default_is(decoder):
    with torch.device("meta"):
        made = Decoder(decoder.model, 2, Sampling().choose, longest=9)
    assert made._tokens.device == decoder.model.device
