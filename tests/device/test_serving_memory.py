"""What a server needs: the arithmetic against the engine's own tensors and the allocator's peak."""

import pytest
import torch
from device.test_memory import CONFIGS, VOCABULARY, make_model, peak

from ptune.base.architecture import RELEASED, Architecture, Storage
from ptune.device.memory import Prefix
from ptune.device.serving_memory import (
    Capacity,
    cache_positions,
    capacity,
    position_bytes,
    served_bytes,
    step_bytes,
)
from ptune.generation.engine import INTERACTIVE, Engine, Request
from ptune.generation.sampling import Sampling
from ptune.models.prefix_encoder import shown_prefix, stack_prefix

FLOAT = Storage(4, device_type="cpu")


def run_requests(model, slots, prompts, new_tokens, prefix, sampling=None):
    """Answer prompts at once; returns the engine."""
    engine = Engine(model, slots, INTERACTIVE)
    sampling = sampling or Sampling(new_tokens)
    for length in prompts:
        ids = torch.randint(10, VOCABULARY - 10, (length,)).tolist()
        if model.config.model_type == "chatglm" and hasattr(model.config, "gmask_token_id"):
            ids[-2:] = [model.config.gmask_token_id, model.config.bos_token_id]
        engine.add(Request(ids, sampling, prefix))
    while engine.busy:
        engine.step()
    return engine


@pytest.mark.parametrize("generation", [1, 2])
def test_a_token_and_a_prefix(generation):
    model = make_model(generation, Prefix(24), FLOAT).eval()
    a = Architecture.from_config(CONFIGS[generation])
    prefix = stack_prefix(model.base_model.prefix_encoder, torch.float32)
    assert prefix.nbytes == 24 * position_bytes(a, FLOAT)
    assert torch.equal(prefix, shown_prefix(model))
    model.generation_config.eos_token_id = []
    engine = run_requests(model, 3, [40, 30, 20], 8, prefix)
    cache = engine._decoder._cache
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 3 * cache.length * position_bytes(a, FLOAT)


def test_released_models():
    half = Storage(2)
    first, later = (Architecture.from_config(RELEASED[n]) for n in ("chatglm-6b", "chatglm2-6b"))
    assert position_bytes(first, half) == 458_752 and position_bytes(later, half) == 28_672


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize(("slots", "prompt"), [(1, 600), (8, 600), (16, 60)])
def test_steps_stay_within_the_bound(generation, slots, prompt):
    model = make_model(generation, Prefix(24), FLOAT).eval()
    model.generation_config.eos_token_id = []
    a = Architecture.from_config(CONFIGS[generation])
    prefix = stack_prefix(model.base_model.prefix_encoder, torch.float32)
    drawn = Sampling(6, do_sample=True, top_p=0.7, temperature=0.9)
    kept = []

    def answer():
        kept.append(run_requests(model, slots, [prompt] * slots, 6, prefix, drawn))

    found = peak(answer)
    cache = kept[0]._decoder._cache
    held = slots * cache.length * position_bytes(a, FLOAT)
    bound = step_bytes(a, FLOAT, slots, prompt * slots, 24)  # all prompts come at once
    assert held < found <= held * (1 + 1 / (2 * a.num_layers)) + bound


def test_the_cache_takes_what_is_left():
    a, half = Architecture.from_config(RELEASED["chatglm3-6b"]), Storage(2)
    memory = 3 * 10**9
    found = cache_positions(a, half, memory, 32, 8192, 128)
    size = position_bytes(a, half)

    def needed(positions):
        steps = step_bytes(a, half, 32, min(positions, 8192), 128)
        return positions * size * (1 + 1 / 56) + steps

    assert needed(found) <= memory < needed(found + 65)
    assert cache_positions(a, half, 10**15, 32, 8192, 128) == 32 * 8320
    assert cache_positions(a, half, 10**6, 32, 8192) == 0 == cache_positions(a, half, -5, 32, 64)


def test_what_a_server_holds():
    a, half = Architecture.from_config(RELEASED["chatglm-6b"]), Storage(2)
    size, of = position_bytes(a, half), (16, 2048, 2048, 100)

    def needed(requests, prefixes):  # 2,148 positions are 2,176 in the cache
        return served_bytes(a, half, requests * 2176, 16, 2048, 100) + prefixes * 100 * size

    assert capacity(a, half, needed(3, 3), *of).requests == 3
    assert capacity(a, half, needed(3, 3) - 1, *of).requests == 2
    assert capacity(a, half, needed(1, 7), *of).prefixes == 7
    assert capacity(a, half, needed(1, 7) - 1, *of).prefixes == 6
    assert capacity(a, half, 10**12, *of).requests == 16
    assert capacity(a, half, 0, *of) == Capacity(0, 0, 0)
