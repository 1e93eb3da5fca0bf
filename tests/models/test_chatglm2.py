"""ChatGLM2 and 3: the translated configuration, and weights renamed there and back."""

import pytest
import torch
from fixtures.checkpoints import (
    base_state,
    changed,
    prefix_state,
    small_case,
    small_ids,
    write_model,
)

from ptune import load_model
from ptune.base.folder import Generation
from ptune.models.chatglm2 import (
    ChatGLM2ForConditionalGeneration,
    ChatGLM2Model,
    from_official,
    to_official,
    translate_config,
)

CASE = small_case(2)


def translated(config=CASE["config"], generation=Generation.CHATGLM2):
    return translate_config(config, generation)


def test_translated_settings():
    config = translated()
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (320, 32, 48)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 8)
    assert config.attention_bias and not config.tie_word_embeddings
    assert config.rms_norm_eps == 1e-5
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    assert config.rope_parameters["rope_theta"] == 10000
    assert (config.eos_token_id, config.pad_token_id) == (2, 0)


def test_without_grouped_queries_every_head_has_its_keys():
    config = translated(CASE["config"] | {"multi_query_attention": False})
    assert config.num_key_value_heads == 4


def test_rope_ratio_of_chatglm2_divides_the_positions():
    found = ChatGLM2Model(translated(CASE["config"] | {"rope_ratio": 16})).rotary_emb.inv_freq
    plain = ChatGLM2Model(translated()).rotary_emb.inv_freq
    torch.testing.assert_close(found, plain / 16, rtol=1e-6, atol=0)


def test_rope_ratio_of_chatglm3_multiplies_the_base():
    config = translated(CASE["config"] | {"rope_ratio": 50}, Generation.CHATGLM3)
    assert config.rope_parameters["rope_theta"] == 500000
    plain = ChatGLM2Model(translated()).rotary_emb.inv_freq
    powers = torch.arange(0, 4, 2) / 4
    found = ChatGLM2Model(config).rotary_emb.inv_freq
    torch.testing.assert_close(found, plain / 50**powers, rtol=1e-6, atol=0)


def test_several_ends_of_an_answer(tmp_path):
    case = changed(CASE, eos_token_id=[2, 300, 301])
    folder = write_model(tmp_path / "chatglm2-6b", case)
    assert load_model(folder).generation_config.eos_token_id == [2, 300, 301]


@pytest.mark.parametrize("multi_query_attention", [True, False])
def test_renaming_there_and_back(multi_query_attention):
    case = changed(CASE, multi_query_attention=multi_query_attention)
    config = translated(case["config"])
    official = base_state(case)
    ours = {}
    for name, tensor in official.items():
        parts = from_official(name, tensor, config)
        assert parts, name
        ours |= parts
    model = ChatGLM2ForConditionalGeneration(config, case["config"])
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    back = to_official(ours, config)
    assert back.keys() == official.keys()
    assert all(torch.equal(back[name], official[name]) for name in official)


def test_without_shared_heads_the_fused_rows_stand_head_by_head():
    case = changed(CASE, multi_query_attention=False)
    config = translated(case["config"])
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
    config = translated()
    ours = {name.replace("transformer.", "model."): t for name, t in official.items()}
    assert to_official(ours, config).keys() == official.keys()


@pytest.mark.parametrize(
    "name", ["transformer.rotary_pos_emb.inv_freq", "transformer.encoder.layers", "anything"]
)
def test_what_is_no_weight_of_the_model(name):
    assert from_official(name, torch.zeros(1), translated()) == {}


def test_sequence_length_of_the_config_is_no_limit_of_the_rotation(tmp_path):
    """Angles are computed as they are needed."""
    ids = small_ids(CASE, 40)[None]
    logits = []
    for length in (16, 2048):
        folder = write_model(tmp_path / str(length), changed(CASE, seq_length=length))
        logits.append(load_model(folder)(input_ids=ids).logits)
    assert torch.equal(*logits)


def test_given_positions_take_the_place_of_counted_ones(model_folder):
    model = load_model(model_folder(CASE))
    ids = small_ids(CASE, 12)[None]
    counted = model(input_ids=ids).logits
    given = model(input_ids=ids, position_ids=torch.arange(12)[None]).logits
    stretched = model(input_ids=ids, position_ids=2 * torch.arange(12)[None]).logits
    assert torch.equal(counted, given)
    assert not torch.allclose(counted, stretched, atol=1e-3)
