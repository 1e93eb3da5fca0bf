"""What a model of transformers demands of a prefix, or why it takes none."""

import pytest
import torch
from fixtures.native_models import SIZES
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from ptune.errors import ModelError
from ptune.models.native import prepare
from ptune.models.native_probe import measure_empty, probe
from ptune.models.prefix_encoder import PrefixShape


def build(kind, **config):
    torch.manual_seed(0)
    settings = SIZES | {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0} | config
    if kind == "falcon":  # has it of the others
        del settings["head_dim"]
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings)).eval()
    prepare(model)
    return model


@pytest.mark.parametrize(
    ("kind", "config", "heads"),
    [
        ("llama", {"num_key_value_heads": 1}, 1),
        ("phi3", {}, 2),
        ("falcon", {"multi_query": True}, 1),
        ("starcoder2", {}, 2),
        ("mixtral", {"num_local_experts": 2}, 2),
    ],
)
def test_shape(kind, config, heads):
    model = build(kind, **config)
    probe(model)
    shape = model.base_model.prefix_shape
    assert shape == PrefixShape(3, heads, 8, 32, 32)
    assert model.base_model.learned_positions is None
    model.base_model.prefix_shape = None
    measure_empty(model)
    assert model.base_model.prefix_shape == shape


def test_learned_positions():
    model = build("gpt2", max_position_embeddings=77)
    probe(model)
    assert model.base_model.learned_positions == 77


REFUSED = "model_type '{}' takes no prefix: {}; take a model whose layers all have attention over"


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        (
            "qwen3_5_text",
            {"layer_types": ["linear_attention"] * 2 + ["full_attention"]},
            "it has layers of linear_attention",
        ),
        ("mamba", {}, "it has layers of linear_attention"),
        ("bloom", {}, "it takes no cache, positions and mask .*"),
        ("mistral", {"sliding_window": 4}, "its layers do not see keys and values in front of .*"),
    ],
)
def test_refused(kind, config, reason):
    with pytest.raises(ModelError, match=REFUSED.format(kind, reason)):
        probe(build(kind, **config))


def test_layers_of_different_shapes():
    types = ["sliding_attention", "sliding_attention", "full_attention"]
    model = build("gemma4_text", layer_types=types, num_kv_shared_layers=0)
    with pytest.raises(ModelError, match=r"not of one shape in all layers \(.* x .*, .* x .*\)"):
        probe(model)


def test_a_head_that_does_more(monkeypatch):
    model = build("cohere", logit_scale=0.5)
    probe(model)
    monkeypatch.setattr(type(model), "scoring_head", property(lambda self: self.lm_head))
    with pytest.raises(ModelError, match="its logits are not what its head makes of"):
        probe(model)
