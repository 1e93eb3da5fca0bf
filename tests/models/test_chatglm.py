"""ChatGLM-6B: positions and context from the ids, the mask, the rotation, the tied head."""

import pytest
import torch
from fixtures.checkpoints import base_state, small_case, small_ids, write_json, write_weights

from ptune import load_model
from ptune.models.chatglm import (
    RESIDUAL_SCALE,
    ChatGLMConfig,
    ChatGLMForConditionalGeneration,
    RotaryEmbedding,
    prefix_lm_mask,
)

GMASK, SOP = 301, 304
CONFIG = ChatGLMConfig(**small_case(1)["config"])


def test_prefix_lm_mask():
    is_context = torch.tensor([[True, True, False, False]])
    mask = prefix_lm_mask(is_context, None, 1, 5)[0, 0].int().tolist()
    assert mask == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_prefix_lm_mask_with_padding():
    is_context = torch.tensor([[False, True, True, False]])
    attention_mask = torch.tensor([[1, 0, 1, 1, 1]])  # the first is the prefix
    mask = prefix_lm_mask(is_context, attention_mask, 1, 5)[0, 0].int().tolist()
    assert mask[1:] == [[1, 0, 1, 1, 0], [1, 0, 1, 1, 0], [1, 0, 1, 1, 1]]
    assert any(mask[0]), "a row of padding that sees nothing gives NaN"


def test_columns_of_a_fixed_cache_that_are_not_filled():
    is_context = torch.tensor([[True, True, False]])
    mask = prefix_lm_mask(is_context, None, 1, 6)[0, 0].int().tolist()
    assert mask == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    one = prefix_lm_mask(torch.tensor([[False]]), torch.tensor([[1, 0, 1]]), 2, 5)
    assert one.int().tolist() == [[[[1, 0, 1, 0, 0]]]]


def test_one_token_needs_no_mask():
    assert prefix_lm_mask(torch.tensor([[False]]), None, 9, 10) is None


def test_frequencies_are_rounded_to_half_precision():
    rotary = RotaryEmbedding(16)
    exact = 1 / 10000 ** (torch.arange(0, 16, 2) / 16)
    assert torch.equal(rotary.inv_freq, exact.half().float())
    assert not torch.equal(rotary.inv_freq, exact)
    cos, _ = rotary(torch.tensor([[[0, 5]], [[0, 1]]]), torch.float32)
    assert cos.shape == (1, 2, 2, 8)
    assert torch.all(cos[:, 0] == 1)
    torch.testing.assert_close(cos[0, 1, 0], (5 * rotary.inv_freq).cos())
    torch.testing.assert_close(cos[0, 1, 1], rotary.inv_freq.cos())


def test_residual_scale_ignores_the_number_of_layers():
    assert pytest.approx(56**0.5) == RESIDUAL_SCALE


def test_config_has_the_official_key_names():
    config = ChatGLMConfig()
    official = {"hidden_size": 4096, "inner_hidden_size": 16384, "num_layers": 28}
    official |= {"vocab_size": 130528, "gmask_token_id": 130001, "bos_token_id": 130004}
    assert official.items() <= config.to_dict().items()
    assert config.num_hidden_layers == 28 and config.intermediate_size == 16384
    assert "auto_map" not in config.to_dict()


def test_head_is_tied_whatever_the_file_says(tmp_path):
    case = small_case(1)
    write_json(tmp_path / "config.json", case["config"])
    ids = small_ids(case, 20)[None]
    logits = []
    for head in ("equal", "other", "absent"):
        state = base_state(case)
        if head == "other":
            state["lm_head.weight"] = torch.zeros_like(state["lm_head.weight"])
        elif head == "absent":
            del state["lm_head.weight"]
        write_weights(tmp_path, state)
        model = load_model(tmp_path)
        assert model.lm_head.weight is model.transformer.word_embeddings.weight
        logits.append(model(input_ids=ids).logits)
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


def test_rotary_buffers_of_a_file_are_ignored(tmp_path):
    case = small_case(1)
    write_json(tmp_path / "config.json", case["config"])
    ids = small_ids(case, 20)[None]
    state = base_state(case)
    write_weights(tmp_path, state)
    expected = load_model(tmp_path)(input_ids=ids).logits
    for i in range(2):
        state[f"transformer.layers.{i}.attention.rotary_emb.inv_freq"] = torch.zeros(2)
    write_weights(tmp_path, state)
    assert torch.equal(load_model(tmp_path)(input_ids=ids).logits, expected)


def test_context_looks_ahead_and_the_answer_does_not():
    torch.manual_seed(0)
    model = ChatGLMForConditionalGeneration(CONFIG).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    row = torch.tensor([[50, 51, 52, GMASK, SOP, 60, 61, 62]])

    def moved(place):
        other = row.clone()
        other[0, place] = 77
        with torch.no_grad():
            change = (model(input_ids=row).logits - model(input_ids=other).logits).abs()
        return (change.amax(dim=-1)[0] > 1e-6).tolist()

    assert all(moved(2))  # seen by the tokens before it, too
    assert moved(6) == [False] * 6 + [True] * 2


def test_embeddings_can_be_replaced():
    model = ChatGLMForConditionalGeneration(CONFIG)
    model.resize_token_embeddings(330)
    assert model.get_input_embeddings().num_embeddings == 330
    assert model.get_output_embeddings().out_features == 330
