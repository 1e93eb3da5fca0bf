"""Slots of a decoder: a step that was recorded is forgotten when what it used is replaced."""

import pytest
import torch
from fixtures.checkpoints import small_case, small_ids

from ptune import load_model
from ptune.generation import decoding
from ptune.generation.decoding import Decoder
from ptune.generation.sampling import Sampling


class Recorded:
    """In the place of `StepGraph`: a step goes on using what it used first, as a recorded one."""

    def __init__(self, run, device, record):
        self.run, self.decoder = run, run.__self__
        self.records = record
        self.forget()

    def forget(self):
        self.used = None

    def __call__(self):
        cache, decoder = self.decoder._cache, self.decoder
        uses = [layer.keys.data_ptr() for layer in cache.layers], cache.at.data_ptr(), cache.shown
        uses = *uses, decoder._tokens.data_ptr(), decoder._positions.data_ptr()
        self.used = self.used or uses
        assert self.used == uses, "a recorded step would write to what is gone"
        return self.run()


@pytest.fixture(params=[1, 2])
def case(request):
    return small_case(request.param)


@pytest.fixture
def decoder(case, model_folder, monkeypatch):
    monkeypatch.setattr(decoding, "StepGraph", Recorded)
    folder = model_folder(case)
    model = load_model(folder, folder / "prefix", dtype="float32", device="cpu")
    return Decoder(model, 3, Sampling().choose, longest=400)


def test_the_cache_grows(case, decoder):
    """And the tokens are those of a cache that was large from the beginning."""
    prompts = [small_ids(case, length, seed).tolist() for seed, length in enumerate((9, 20, 6))]
    found = [decoder.fill([0, 1, 2], prompts).ids]
    columns = {decoder._cache.columns}
    for _ in range(200):
        found.append(decoder.step().ids)
        columns.add(decoder._cache.columns)
    assert len(columns) > 2
    for row, prompt in zip(torch.stack(found, dim=1).tolist(), prompts, strict=True):
        options = {"max_new_tokens": 201, "do_sample": False, "eos_token_id": None}
        expected = decoder.model.generate(torch.tensor([prompt]), **options)
        assert row == expected[0, len(prompt) :].tolist()


def test_slots_are_dropped(case, decoder):
    decoder.fill([0, 1, 2], [small_ids(case, 9, seed).tolist() for seed in range(3)])
    decoder.step()
    decoder.keep([2, 0])
    decoder.step()
    assert decoder.slots == 2
