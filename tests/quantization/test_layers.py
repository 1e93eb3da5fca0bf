"""Models with quantized weights: official folders, and plain ones quantized while loading."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from fixtures.checkpoints import (
    base_state,
    changed,
    quantize,
    small_case,
    small_ids,
    write_json,
    write_model,
    write_weights,
)

from ptune import load_model
from ptune.base.weights import WeightFiles
from ptune.errors import ConfigError, ModelError
from ptune.quantization.frozen_linear import FrozenLinear
from ptune.quantization.layers import is_quantized_layer, precision_of

GENERATIONS = (1, 2, 3, 4)
BITS = (4, 8)


def logits(model, case):
    with torch.no_grad():
        return model(input_ids=small_ids(case, 20)[None]).logits


def layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, FrozenLinear)}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_which_weights_are_quantized(generation):
    case = small_case(generation)
    state = base_state(changed(case, quantization_bit=8))
    expected = {name for name, tensor in state.items() if tensor.dtype == torch.int8}
    assert {name for name in state if is_quantized_layer(name)} == expected
    assert len(expected) == 4 * case["config"]["num_layers"]


@pytest.mark.parametrize("generation", (1, 2))
@pytest.mark.parametrize(("bits", "bound"), [(8, 0.1), (4, 1.0)])
def test_quantized_folder(model_folder, generation, bits, bound):
    """Held as it is, and close to the full weights."""
    case = small_case(generation)
    full = load_model(model_folder(case))
    found = load_model(model_folder(changed(case, quantization_bit=bits)))
    held = layers(found)
    assert len(held) == case["config"]["num_layers"] * {1: 4, 2: 6}[generation]
    for name, layer in held.items():
        assert layer.weight.dtype == torch.int8
        assert layer.weight.shape == (layer.out_features, layer.in_features * bits // 8)
        expected = full.get_submodule(name).weight
        step = expected.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
        error = (layer.dequantize(0, layer.out_features, torch.float32) - expected).abs()
        assert (error <= 0.51 * step + 2e-3 * expected.abs()).all(), name
    expected = logits(full, case)
    error = (logits(found, case) - expected).norm() / expected.norm()
    assert bound / 50 < error < bound


@pytest.mark.parametrize("multi_query_attention", (True, False))
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("bits", BITS)
def test_quantized_while_loading(model_folder, generation, bits, multi_query_attention):
    """The same model as an official folder of these bits."""
    case = small_case(generation, multi_query_attention=multi_query_attention)
    official = load_model(model_folder(changed(case, quantization_bit=bits)))
    found = load_model(model_folder(case), quantization_bit=bits)
    for name, tensor in official.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert torch.equal(logits(found, case), logits(official, case))
    assert not any(p.requires_grad for p in found.parameters())


@pytest.mark.parametrize("scale_dtype", (torch.bfloat16, torch.float32))
def test_scales_in_other_precisions(tmp_path, scale_dtype):
    case = changed(small_case(2), quantization_bit=4)
    state = base_state(case)
    scales = {name: t.to(scale_dtype) for name, t in state.items() if name.endswith("_scale")}
    write_json(tmp_path / "config.json", case["config"])
    write_weights(tmp_path, state | scales)
    name, layer = next(iter(layers(load_model(tmp_path)).items()))
    assert name == "model.layers.0.self_attn.q_proj"
    expected = scales["transformer.encoder.layers.0.self_attention.query_key_value.weight_scale"]
    assert torch.equal(layer.weight_scale, expected[: layer.out_features].float())


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16"))
def test_precision_of_the_computation(model_folder, dtype):
    case = small_case(1)
    model = load_model(model_folder(case), dtype=dtype, quantization_bit=8)
    assert logits(model, case).dtype == getattr(torch, dtype)
    assert precision_of(model) == f"{dtype} on cpu, 8 bits (torch)"
    assert precision_of(load_model(model_folder(case), dtype=dtype)) == f"{dtype} on cpu"


@pytest.mark.parametrize("bits", BITS)
def test_quantized_embeddings(tmp_path, bits):
    """Of THUDM/chatglm-6b-int4-qe: embeddings and head share their codes."""
    case = changed(small_case(1), quantization_bit=bits, quantization_embeddings=True)
    state = base_state(case)
    name = "transformer.word_embeddings.weight"
    codes, scale = quantize(state[name], bits)
    plain, full = tmp_path / "plain", tmp_path / "full"
    for folder in (plain, full):
        folder.mkdir()
        config = case["config"] | {"quantization_embeddings": folder == plain}
        write_json(folder / "config.json", config)
    for head in (name, "lm_head.weight"):
        state[head], state[head + "_scale"] = codes, scale
    write_weights(plain, state)
    model = load_model(plain)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    assert model.transformer.word_embeddings.weight.dtype == torch.int8

    for head in (name, "lm_head.weight"):
        wide = codes if bits == 8 else torch.stack([codes >> 4, (codes << 4) >> 4], -1).flatten(1)
        state[head] = wide.float() * scale.float()[:, None]
        del state[head + "_scale"]
    write_weights(full, state)
    torch.testing.assert_close(logits(model, case), logits(load_model(full), case))

    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(load_model(tmp_path / "saved"), case), logits(model, case))


def refused(folder, message, error=ModelError, **arguments):
    with pytest.raises(error, match=message):
        load_model(folder, **arguments)


def test_quantized_weight_without_its_scale(tmp_path):
    case = changed(small_case(1), quantization_bit=8)
    state = base_state(case)
    name = "transformer.layers.0.attention.dense.weight"
    del state[name + "_scale"]
    write_json(tmp_path / "config.json", case["config"])
    write_weights(tmp_path, state)
    refused(tmp_path, f"{name} in .* has no {name}_scale as the other weights do; .* incomplete")


@pytest.mark.parametrize("bits", [None, 0])
def test_quantized_weights_without_their_width(tmp_path, bits):
    folder = write_model(tmp_path / "model", changed(small_case(1), quantization_bit=8))
    write_json(folder / "config.json", changed(small_case(1), quantization_bit=bits)["config"])
    refused(folder, f"quantization_bit {bits} in .*config.json.* 4 or 8")


def test_config_of_other_bits_than_the_weights(tmp_path):
    folder = write_model(tmp_path / "model", changed(small_case(1), quantization_bit=8))
    write_json(folder / "config.json", changed(small_case(1), quantization_bit=4)["config"])
    refused(folder, r"has shape \[96, 32\] .* config.json asks for \[96, 16\]")


@pytest.mark.parametrize("wanted", [4, "nf4", "none"])
def test_other_bits_of_a_quantized_folder(model_folder, wanted):
    folder = model_folder(changed(small_case(2), quantization_bit=8))
    message = f"--quantization-bit {wanted} does not go with .*whose weights have 8 bits already; "
    refused(folder, message + "leave it out, or pass", ConfigError, quantization_bit=wanted)
    load_model(folder, quantization_bit=8)


def test_backend_that_the_machine_lacks(model_folder):
    folder = model_folder(small_case(1))
    arguments = {"quantization_bit": 4, "device": "cpu"}
    message = "quantization_backend nvrtc needs a CUDA card, not cpu; leave it out or choose torch"
    refused(folder, message, ConfigError, quantization_backend="nvrtc", **arguments)
    message = "quantization_backend fastest is unknown; choose one of"
    refused(folder, message, ConfigError, quantization_backend="fastest", **arguments)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_save_pretrained_writes_an_official_quantized_folder(model_folder, tmp_path, generation):
    case = small_case(generation)
    model = load_model(model_folder(case), quantization_bit=4)
    model.save_pretrained(tmp_path / "saved")
    official = base_state(changed(case, quantization_bit=4))
    saved = dict(WeightFiles(tmp_path / "saved").items())
    assert all(torch.equal(saved[n], official[n]) for n in official if is_quantized_layer(n))
    again = load_model(tmp_path / "saved")
    assert layers(again).keys() == layers(model).keys()
    assert torch.equal(logits(again, case), logits(model, case))


@pytest.mark.parametrize("bits", (*BITS, "nf4"))
@pytest.mark.parametrize("generation", GENERATIONS)
def test_gradient_of_the_prefix(model_folder, generation, bits):
    """That of a plain model with the same weights."""
    if bits == "nf4":
        pytest.importorskip("bitsandbytes", reason="needs the extra ptune[nf4]")
    case = small_case(generation)
    folder = model_folder(case)
    found = load_model(folder, folder / "prefix", quantization_bit=bits)
    plain = load_model(folder, folder / "prefix")
    for name, layer in layers(found).items():
        weight = plain.get_submodule(name).weight
        weight.data = layer.dequantize(0, layer.out_features, torch.float32)
    ids = torch.stack([small_ids(case, 20, seed) for seed in range(3)])
    gradients = []
    for model in (found, plain):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        gradients.append(model.base_model.prefix_encoder.embedding.weight.grad)
        assert all(p.grad is None for n, p in model.named_parameters() if "prefix" not in n)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)
    assert gradients[0].abs().sum() > 0


def test_nf4_is_closer_than_the_official_four_bits(model_folder):
    pytest.importorskip("bitsandbytes", reason="needs the extra ptune[nf4]")
    case = small_case(1, hidden_size=128, inner_hidden_size=512)
    folder = model_folder(case)
    exact = logits(load_model(folder), case)
    errors = {
        bits: (logits(load_model(folder, quantization_bit=bits), case) - exact).norm()
        for bits in (4, "nf4")
    }
    assert 0 < errors["nf4"] < errors[4]
    assert precision_of(load_model(folder, quantization_bit="nf4")) == "float32 on cpu, nf4"


def test_nf4_without_bitsandbytes(model_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    message = "--quantization-bit nf4 needs bitsandbytes, which cannot be used .*pip install 'ptune"
    refused(model_folder(small_case(1)), message, ConfigError, quantization_bit="nf4")


MEASURE = """
    import ctypes, json, sys, threading
    from pathlib import Path
    from ptune import load_model

    def anonymous():
        status = Path("/proc/self/status").read_text().split("RssAnon:")[1]
        return int(status.split()[0]) * 1024

    def watch():
        while not done.wait(0.001):
            seen.append(anonymous())

    small, folder = sys.argv[1:]
    load_model(small, quantization_bit=4)
    # M_MMAP_THRESHOLD: what is freed goes back to the system, as tensors of a real size do.
    ctypes.CDLL(None).mallopt(-3, 65536)
    done, seen = threading.Event(), [anonymous()]
    before = seen[0]
    watcher = threading.Thread(target=watch)
    watcher.start()
    model = load_model(folder, dtype="float16", quantization_bit=4)
    done.set()
    watcher.join()
    print(json.dumps([max(seen) - before, sum(p.nbytes for p in model.parameters())]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize("format", ["bin", "safetensors"])
def test_quantizing_takes_the_small_model_and_little_more(tmp_path, model_folder, format):
    """Never the half-precision model in memory, which is nearly four times the size."""
    case = small_case(1, hidden_size=512, inner_hidden_size=2048, num_layers=8)
    shapes = base_state(small_case(1, num_layers=8))
    del shapes["lm_head.weight"]
    state = {
        name: torch.randn([n if n == 320 else n * 16 for n in tensor.shape]).half() / 16
        for name, tensor in shapes.items()
    }
    write_json(tmp_path / "config.json", case["config"])
    write_weights(tmp_path, state, format, 3)
    small = model_folder(small_case(1))
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(small), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    peak, model = json.loads(run.stdout)
    full = sum(tensor.nbytes for tensor in state.values())
    largest = max(tensor.nbytes for tensor in state.values())
    assert full > 50e6 and model < 0.27 * full
    assert model * 0.9 < peak < model + 6 * largest < 0.6 * full
