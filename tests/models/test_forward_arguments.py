"""What a forward takes and gives back beside ids and logits, as the library's models do."""

import inspect

import pytest
import torch
from fixtures.checkpoints import small_case, small_ids

from ptune import load_model
from ptune.errors import ModelError

LENGTH, PREFIX = 16, 5


@pytest.fixture(scope="module", params=[1, 2, 3])
def case(request):
    return small_case(request.param)


@pytest.fixture(scope="module")
def folder(case, model_folder):
    return model_folder(case)


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, folder / "prefix", dtype="float32")


@pytest.fixture(scope="module")
def eager(folder):
    model = load_model(folder, folder / "prefix", dtype="float32")
    model.set_attn_implementation("eager")
    return model


@pytest.fixture
def row(case):
    return small_ids(case, LENGTH)[None]


@pytest.fixture
def ids(case):
    return torch.stack([small_ids(case, LENGTH, seed) for seed in (0, 1)])


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("name", ["token_type_ids", "head_mask", "attention_msak"])
def test_unknown_arguments(model, row, name):
    for forward in (model, model.base_model):
        kind = type(model.base_model).__name__
        message = rf"{kind}.forward\(\) got an unexpected keyword argument '{name}'"
        with pytest.raises(TypeError, match=message):
            forward(row, **{name: torch.zeros_like(row)})
    with pytest.raises(ValueError, match=name):
        model.generate(row, max_new_tokens=1, **{name: torch.zeros_like(row)})


def test_arguments_that_the_first_generation_does_not_have(model, case, row):
    """Those of packed sequences; the library's decoder knows them, and without them they are no."""
    options = {"is_causal": False}
    if case["generation"] == 1:
        with pytest.raises(TypeError, match="unexpected keyword argument 'is_causal'"):
            model(row, **options)
    else:
        assert not torch.allclose(model(row, **options).logits, model(row).logits, atol=1e-3)


@torch.no_grad()
def test_hidden_states_and_attentions(eager, case, ids):
    plain = eager(ids)
    outputs = eager(ids, output_hidden_states=True, output_attentions=True)
    close(outputs.logits, plain.logits)
    assert plain.hidden_states is None and plain.attentions is None
    assert len(outputs.hidden_states) == 3 and len(outputs.attentions) == 2
    embedded = eager.get_input_embeddings()(ids)
    assert torch.equal(outputs.hidden_states[0], embedded)
    close(eager.lm_head(outputs.hidden_states[-1]), plain.logits)
    for weights in outputs.attentions:  # the prefix's columns come first
        assert weights.shape == (2, 4, LENGTH, PREFIX + LENGTH)
        close(weights.sum(-1), torch.ones(2, 4, LENGTH))
        assert (weights[..., :PREFIX] > 0).all()
        sees = (weights[0, 0, :, PREFIX:] > 0).int()
        context = LENGTH // 2 + 1 if case["generation"] == 1 else 0
        causal = torch.ones(LENGTH, LENGTH, dtype=torch.int).tril()
        causal[:, :context] = 1
        assert torch.equal(sees, causal)
    in_config = eager.base_model(ids, output_hidden_states=True)
    assert torch.equal(in_config.hidden_states[1], outputs.hidden_states[1])


@torch.no_grad()
def test_hidden_states_of_generation(eager, row):
    options = {"max_new_tokens": 3, "eos_token_id": None, "return_dict_in_generate": True}
    outputs = eager.generate(row, output_hidden_states=True, output_attentions=True, **options)
    assert [step[0].shape[1] for step in outputs.hidden_states] == [LENGTH, 1, 1]
    widths = [PREFIX + LENGTH, PREFIX + LENGTH + 1, PREFIX + LENGTH + 2]
    assert [step[0].shape[-1] for step in outputs.attentions] == widths


@torch.no_grad()
def test_tuples(model, row):
    outputs = model(row, labels=row)
    loss, logits, cache = model(row, labels=row, return_dict=False)
    assert torch.equal(loss, outputs.loss) and torch.equal(logits, outputs.logits)
    assert cache.get_seq_length() == LENGTH
    (hidden,) = model.base_model(row, return_dict=False, use_cache=False)
    assert torch.equal(model.lm_head(hidden), logits)


@torch.no_grad()
def test_embeddings_in_the_place_of_ids(model, case, ids):
    expected = model(ids).logits
    embeds = model.get_input_embeddings()(ids)
    if case["generation"] == 1:
        with pytest.raises(ModelError, match=r"do not tell .* pass position_ids \[B, 2, S\]"):
            model(inputs_embeds=embeds)
        at = LENGTH // 2
        position = torch.cat([torch.arange(at + 1), torch.full((LENGTH - at - 1,), at)])
        block = (torch.arange(LENGTH) - at).clamp(min=0)
        given = {"position_ids": torch.stack([position, block]).expand(2, -1, -1)}
    else:
        given = {}
    close(model(inputs_embeds=embeds, **given).logits, expected)
    # And on from there, by ids.
    cache = model(inputs_embeds=embeds, **given, use_cache=True).past_key_values
    more = torch.tensor([[20, 21], [22, 23]])
    longer = model(torch.cat([ids, more], dim=1)).logits[:, -2:]
    close(model(more, past_key_values=cache).logits, longer, atol=1e-4)


def test_ids_and_embeddings(model, row):
    for given in ({}, {"input_ids": row, "inputs_embeds": torch.zeros(1, LENGTH, 32)}):
        with pytest.raises(ValueError, match="pass input_ids or inputs_embeds, and not both"):
            model(**given)


def test_generate_from_embeddings(model, case, row):
    embeds = model.get_input_embeddings()(row)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    expected = model.generate(row, **options)[:, LENGTH:]
    if case["generation"] == 1:
        with pytest.raises(ValueError, match="inputs_embeds"):
            model.generate(inputs_embeds=embeds, **options)
    else:
        assert model.generate(inputs_embeds=embeds, **options).tolist() == expected.tolist()


@torch.no_grad()
def test_positions_given(model, case, ids):
    expected = model(ids).logits
    if case["generation"] == 1:
        with pytest.raises(ModelError, match=r"shape \[1, 16\].* leave it out, or pass \[2, 2, 16"):
            model(ids, position_ids=torch.arange(LENGTH)[None])
        at = LENGTH // 2
        position = torch.cat([torch.arange(at + 1), torch.full((LENGTH - at - 1,), at)])
        positions = torch.stack([position, (torch.arange(LENGTH) - at).clamp(min=0)])
        positions = positions.expand(2, -1, -1)
    else:
        positions = torch.arange(LENGTH).expand(2, -1)
    close(model(ids, position_ids=positions).logits, expected)
    assert not torch.allclose(model(ids, position_ids=2 * positions).logits, expected, atol=1e-3)


def test_positions_given_to_generate(model, case, row):
    if case["generation"] == 1:
        positions = torch.zeros(1, 2, LENGTH, dtype=torch.long)
        with pytest.raises(ModelError, match=r"generate takes no position_ids .* leave them out"):
            model.generate(row, position_ids=positions, max_new_tokens=2)
    else:
        options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
        found = model.generate(row, position_ids=torch.arange(LENGTH)[None], **options)
        assert found.tolist() == model.generate(row, **options).tolist()


@torch.no_grad()
def test_texts_packed_into_a_row(model, case):
    """ChatGLM2 and 3, by positions that begin anew; each text sees the prefix and itself."""
    if case["generation"] == 1:
        pytest.skip("one position a token is refused")
    texts = [small_ids(case, length, seed) for seed, length in enumerate((7, 5))]
    positions = torch.cat([torch.arange(7), torch.arange(5)])[None]
    packed = model(torch.cat(texts)[None], position_ids=positions, use_cache=False).logits[0]
    alone = torch.cat([model(text[None]).logits[0] for text in texts])
    close(packed, alone, atol=1e-4)


@torch.no_grad()
def test_a_mask_for_each_query(model, case, ids):
    """`[B, 1, S, K]` over the text; the prefix is seen by all."""
    if case["generation"] == 1:
        mask = torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool)
        with pytest.raises(ModelError, match=r"attention_mask has shape \[2, 1, 16, 16\] for 16"):
            model(ids, attention_mask=mask)
        return
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    close(model(ids, attention_mask=mask).logits, model(ids).logits)
    first = torch.eye(LENGTH, dtype=torch.bool).expand(2, 1, -1, -1)
    assert not torch.allclose(model(ids, attention_mask=first).logits, model(ids).logits, atol=1e-3)


def test_loss_by_shifted_labels(model, row):
    shifted = torch.nn.functional.pad(row[:, 1:], (0, 1), value=-100)
    close(model(row, shift_labels=shifted).loss, model(row, labels=row).loss)


def test_the_trainer_may_pass_its_count(model):
    """The library looks for an attribute, or for any keywords at all."""
    assert model.accepts_loss_kwargs
    assert "num_items_in_batch" in inspect.signature(type(model).forward).parameters
