"""Writes small ChatGLM checkpoints in the official layout, whose weights follow from a seed.

A case is a dict with `architecture` ("v1", or "v2" for ChatGLM2 and 3), `seed`, `config` (the
official config.json) and `prefix` (`pre_seq_len`, `prefix_projection`): one of tests/golden, or one
of `small_case`, whose vocabulary is small enough to be written in milliseconds.
"""

import copy
import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent / "golden"
PREFIX = "transformer.prefix_encoder."
FILE_NAMES = {"bin": ("pytorch_model", ".bin"), "safetensors": ("model", ".safetensors")}
QUANTIZED = ("query_key_value.weight", "dense.weight", "h_to_4h.weight", "4h_to_h.weight")


def golden_case(name):
    """A case of tests/golden; `values` holds its tensors."""
    case = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    case["values"] = load_file(GOLDEN / f"{name}.safetensors")
    return case


def small_case(generation, prefix_projection=False, **config):
    """A case of a golden one's kind with 320 tokens and 2 layers; `config` replaces settings.

    Args:
        generation: 1, 2 or 3.
        prefix_projection: of the prefix, whose length is 5.
        config: settings of config.json.
    """
    case = json.loads((GOLDEN / f"v{generation}.json").read_text(encoding="utf-8"))
    small = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
    if generation == 1:
        small |= {"vocab_size": 320, "inner_hidden_size": 128, "mask_token_id": 300}
        small |= {"gmask_token_id": 301, "bos_token_id": 304, "eos_token_id": 305}
    else:
        small |= {"padded_vocab_size": 320, "ffn_hidden_size": 48, "kv_channels": 8}
    return {
        "architecture": case["architecture"],
        "generation": generation,
        "seed": 40 + generation,
        "config": case["config"] | small | config,
        "prefix": {"pre_seq_len": 5, "prefix_projection": prefix_projection},
    }


def small_ids(case, length, seed=0):
    """A row of `length` ids for a small case: `text [gMASK] <sop> text` or `[gMASK] sop text`."""
    ids = torch.randint(10, 290, (length,), generator=torch.Generator().manual_seed(seed))
    if case["generation"] == 1:
        at = length // 2
        ids[at : at + 2] = torch.tensor([301, 304])
    else:
        ids[:2] = torch.tensor([310, 311])
    return ids


def draw(seed, name, shape):
    """float32 values that depend on nothing but the seed and the tensor's name."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"{seed}:{name}".encode())))
    values = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
    if name.endswith("bias"):
        return values * np.float32(0.05)
    if "layernorm" in name:
        return 1 + values * np.float32(0.1)
    if name == "transformer.word_embeddings.weight":
        return values * np.float32(0.12)
    if "embedding" in name or "prefix_encoder" in name:
        return values * np.float32(0.5)
    return (values.double() * (3 / math.sqrt(shape[-1]))).float()  # rounded once


def base_state(case):
    """Tensors of the base model, under official names, quantized if the config says so."""
    shapes = _first_shapes if case["architecture"] == "v1" else _second_shapes
    state = {name: draw(case["seed"], name, s) for name, s in shapes(case["config"]).items()}
    if case["architecture"] == "v1":
        # Official files hold the tied head a second time.
        state["lm_head.weight"] = state["transformer.word_embeddings.weight"].clone()
    bits = case["config"].get("quantization_bit", 0)
    return _quantize_layers(state, bits) if bits else state


def _first_shapes(config):
    hidden, inner, vocab = (config[k] for k in ("hidden_size", "inner_hidden_size", "vocab_size"))
    layer = {
        "input_layernorm": (hidden,),
        "attention.query_key_value": (3 * hidden, hidden),
        "attention.dense": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.dense_h_to_4h": (inner, hidden),
        "mlp.dense_4h_to_h": (hidden, inner),
    }
    shapes = {"transformer.word_embeddings.weight": (vocab, hidden)}
    named = {
        f"transformer.layers.{i}.{name}": shape
        for i in range(config["num_layers"])
        for name, shape in layer.items()
    }
    for name, shape in {**named, "transformer.final_layernorm": (hidden,)}.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def _second_shapes(config):
    hidden, ffn, vocab = (
        config[k] for k in ("hidden_size", "ffn_hidden_size", "padded_vocab_size")
    )
    query = config["kv_channels"] * config["num_attention_heads"]
    grouped = config["multi_query_attention"]
    groups = config["multi_query_group_num"] if grouped else config["num_attention_heads"]
    fused = query + 2 * config["kv_channels"] * groups
    layer = {
        "input_layernorm.weight": (hidden,),
        "self_attention.query_key_value.weight": (fused, hidden),
        "self_attention.query_key_value.bias": (fused,),
        "self_attention.dense.weight": (hidden, query),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.dense_h_to_4h.weight": (2 * ffn, hidden),
        "mlp.dense_4h_to_h.weight": (hidden, ffn),
    }
    return {
        "transformer.embedding.word_embeddings.weight": (vocab, hidden),
        **{
            f"transformer.encoder.layers.{i}.{name}": shape
            for i in range(config["num_layers"])
            for name, shape in layer.items()
        },
        "transformer.encoder.final_layernorm.weight": (hidden,),
        "transformer.output_layer.weight": (vocab, hidden),
    }


def prefix_state(case):
    """Tensors of the prefix encoder, under official names."""
    config, prefix = case["config"], case["prefix"]
    hidden = config["hidden_size"]
    if case["architecture"] == "v1":
        width, inner = 2 * config["num_layers"] * hidden, hidden
    else:
        heads = config["kv_channels"] * config["multi_query_group_num"]
        width = inner = 2 * config["num_layers"] * heads
    if prefix["prefix_projection"]:
        shapes = {
            "embedding.weight": (prefix["pre_seq_len"], inner),
            "trans.0.weight": (hidden, inner),
            "trans.0.bias": (hidden,),
            "trans.2.weight": (width, hidden),
            "trans.2.bias": (width,),
        }
    else:
        shapes = {"embedding.weight": (prefix["pre_seq_len"], width)}
    return {PREFIX + name: draw(case["seed"], PREFIX + name, s) for name, s in shapes.items()}


def quantize(weight, bits):
    """The official storage: int8 `[out, in * bits / 8]`, and a float16 scale `[out]`."""
    weight = weight.half()
    scale = weight.abs().amax(dim=-1) / (2 ** (bits - 1) - 1)
    quantized = torch.round(weight / scale[:, None]).to(torch.int8)
    if bits == 4:
        quantized = (quantized[:, 0::2] << 4) | (quantized[:, 1::2] & 15)
    return quantized, scale


def _quantize_layers(state, bits):
    out = {}
    for name, tensor in state.items():
        if name.endswith(QUANTIZED):
            out[name], out[name + "_scale"] = quantize(tensor, bits)
        else:
            out[name] = tensor
    return out


def write_model(folder, case, format="bin", shards=1, prefix=True):
    """Write config.json, weights and (as the original training leaves it) `folder`/prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", case["config"])
    write_weights(folder, base_state(case), format, shards)
    if prefix:
        write_prefix(folder / "prefix", case)
    return folder


def write_prefix(folder, case, format="bin"):
    """Write the prefix as the original training does: it and config.json, nothing of the base."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, prefix_state(case), format)
    write_json(folder / "config.json", case["config"] | case["prefix"])
    return folder


def write_weights(folder, state, format="bin", shards=1):
    """Write tensors as one file, or dealt out to `shards` files and their index."""
    stem, suffix = FILE_NAMES[format]
    if shards == 1:
        _save(state, folder / f"{stem}{suffix}")
        return
    weight_map = {}
    for k in range(shards):
        file = f"{stem}-{k + 1:05d}-of-{shards:05d}{suffix}"
        part = {name: state[name] for name in list(state)[k::shards]}
        _save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / f"{stem}{suffix}.index.json", index)


def _save(state, file):
    if file.suffix == ".bin":
        torch.save(state, file)
    else:
        save_file(state, file, metadata={"format": "pt"})


def write_json(file, content):
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def changed(case, **config):
    """A copy of a case with other settings in its config.json; None removes one."""
    case = copy.deepcopy(case)
    case["config"] |= config
    case["config"] = {key: value for key, value in case["config"].items() if value is not None}
    return case
