"""ChatGLM2 and 3: the translated configuration, and weights renamed there and back."""

import pytest
import torch
from fixtures.checkpoints import base_state, changed, prefix_state, small_case
from transformers.core_model_loading import revert_weight_conversion

from ptune.errors import ModelError
from ptune.models.chatglm2 import ChatGLM2ForConditionalGeneration, ChatGLM2Model
from ptune.models.chatglm2_layout import ChatGLM2Config, from_official

CASE = small_case(2)


def test_translated_settings():
    config = ChatGLM2Config(**CASE["config"])
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (320, 32, 48)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 8)
    assert config.attention_bias and not config.tie_word_embeddings
    assert config.rms_norm_eps == 1e-5
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    assert config.rope_parameters["rope_theta"] == 10000
    assert (config.eos_token_id, config.pad_token_id) == (2, 0)


def test_without_grouped_queries_every_head_has_its_keys():
    config = ChatGLM2Config(**CASE["config"] | {"multi_query_attention": False})
    assert config.num_key_value_heads == 4


def frequencies(**settings):
    return ChatGLM2Model(ChatGLM2Config(**CASE["config"] | settings)).rotary_emb.inv_freq


def test_rope_ratio_of_chatglm2_divides_the_positions():
    expected = frequencies() / 16
    for name in ({}, {"prompt_format": "chatglm2", "_name_or_path": "chatglm3"}):
        found = frequencies(rope_ratio=16, **name)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_rope_ratio_of_chatglm3_multiplies_the_base():
    expected = frequencies() / 50 ** (torch.arange(0, 4, 2) / 4)
    for name in ({"prompt_format": "chatglm3"}, {"_name_or_path": "THUDM/chatglm3-6b-32k"}):
        found = frequencies(rope_ratio=50, **name)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_rope_ratio_of_nobody_knows_which():
    config = CASE["config"] | {"rope_ratio": 16, "_name_or_path": "glm"}
    with pytest.raises(ModelError, match=r"rope_ratio 16 in config.json divides .*; load the fold"):
        ChatGLM2Config.from_dict(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("add_bias_linear", True),
        ("apply_residual_connection_post_layernorm", True),
        ("post_layer_norm", False),
        ("rmsnorm", False),
        ("tie_word_embeddings", True),
    ],
)
def test_settings_of_another_architecture(name, value):
    with pytest.raises(ModelError, match=rf"{name} {value} in config.json is not ChatGLM2, "):
        ChatGLM2Config(**CASE["config"] | {name: value})


def test_missing_setting_is_named():
    config = {key: v for key, v in CASE["config"].items() if key != "kv_channels"}
    with pytest.raises(ModelError, match=r"config.json lacks kv_channels; download it again"):
        ChatGLM2Config.from_dict(config)


@pytest.mark.parametrize("multi_query_attention", [True, False])
def test_renaming_there_and_back(multi_query_attention):
    case = changed(CASE, multi_query_attention=multi_query_attention)
    config = ChatGLM2Config(**case["config"])
    official = base_state(case)
    ours = {}
    for name, tensor in official.items():
        parts = from_official(name, tensor, config)
        assert parts, name
        ours |= parts
    model = ChatGLM2ForConditionalGeneration(config)
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    back = revert_weight_conversion(model, ours)
    assert back.keys() == official.keys()
    assert all(torch.equal(back[name], official[name]) for name in official)


def test_without_shared_heads_the_fused_rows_stand_head_by_head():
    case = changed(CASE, multi_query_attention=False)
    config = ChatGLM2Config(**case["config"])
    heads, size = config.num_attention_heads, config.head_dim
    rows = torch.tensor(
        [[h, part, i] for h in range(heads) for part in range(3) for i in range(size)]
    )
    name = "transformer.encoder.layers.1.self_attention.query_key_value.weight"
    split = from_official(name, rows, config)
    for part, letter in enumerate("qkv"):
        expected = torch.tensor([[h, part, i] for h in range(heads) for i in range(size)])
        assert torch.equal(split[f"model.layers.1.self_attn.{letter}_proj.weight"], expected)


def test_prefix_keeps_its_name():
    official = prefix_state(CASE)
    model = ChatGLM2ForConditionalGeneration(ChatGLM2Config(**CASE["config"]))
    ours = {name.replace("transformer.", "model."): t for name, t in official.items()}
    assert revert_weight_conversion(model, ours).keys() == official.keys()


@pytest.mark.parametrize(
    "name", ["transformer.rotary_pos_emb.inv_freq", "transformer.encoder.layers", "anything"]
)
def test_what_is_no_weight_of_the_model(name):
    assert from_official(name, torch.zeros(1), ChatGLM2Config(**CASE["config"])) == {}
