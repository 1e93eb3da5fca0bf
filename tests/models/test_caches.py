"""Every cache that `generate` has gives the tokens of one call without a cache, prefix or not."""

import copy

import pytest
import torch
from fixtures.checkpoints import small_case, small_ids
from transformers import DynamicCache, StaticCache

from ptune import load_model
from ptune.errors import ModelError
from ptune.models.prefix_encoder import prefix_disabled

LENGTH, NEW = 20, 8
BOTH_WAYS = "ends before <sop>, after .* in both directions, .* without prefill_chunk_size"


@pytest.fixture(scope="module", params=[1, 2, 3])
def case(request):
    return small_case(request.param)


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "base"])
def model(request, case, model_folder):
    folder = model_folder(case)
    return load_model(folder, folder / "prefix" if request.param else None, dtype="float32")


@pytest.fixture
def row(case):
    """A prompt, in ChatGLM-6B with its `<sop>` in the middle."""
    return small_ids(case, LENGTH)[None]


@pytest.fixture
def batch(case):
    """Two left-padded prompts."""
    pad, short = case["config"]["pad_token_id"], small_ids(case, LENGTH - 6, seed=1)
    padded = torch.cat([torch.full((6,), pad), short])
    ids = torch.stack([small_ids(case, LENGTH), padded])
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, input_ids, **options):
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None} | options
    options |= {"return_dict_in_generate": True, "output_logits": True}
    return model.generate(input_ids, **options)


def same(found, expected):
    assert found.sequences.tolist() == expected.sequences.tolist()
    for one, other in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def longer(batch, answer, extra):
    """Ids and mask of a batch with its answer and what comes after."""
    ids = torch.cat([answer.sequences, extra], dim=1)
    ones = torch.ones(len(ids), ids.shape[1] - LENGTH, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.cat([batch["attention_mask"], ones], dim=1)}


def test_a_cache_of_an_earlier_turn(model, batch):
    first = generate(model, **batch, max_new_tokens=4)
    assert first.past_key_values.get_seq_length() == LENGTH + 3, "the last token is not in it yet"
    turn = longer(batch, first, torch.tensor([[20, 21, 22], [23, 24, 25]]))
    expected = generate(model, **turn, use_cache=False)
    same(generate(model, **turn, past_key_values=first.past_key_values), expected)


def test_new_tokens_alone_after_an_earlier_turn(model, batch):
    """The library also takes what is new, with the mask of all."""
    first = generate(model, **batch, max_new_tokens=4)
    turn = longer(batch, first, torch.tensor([[20, 21], [23, 24]]))
    expected = generate(model, **turn, use_cache=False)
    turn["input_ids"] = turn["input_ids"][:, LENGTH + 3 :]
    found = generate(model, **turn, past_key_values=first.past_key_values)
    assert found.sequences[:, 3:].tolist() == expected.sequences[:, LENGTH + 6 :].tolist()


def test_a_beginning_computed_once(model, case, row):
    """One that reaches beyond <sop>, which is where ChatGLM-6B's context ends."""
    begun = model(row, use_cache=True).past_key_values
    for extra in ([30, 31], [40, 41, 42]):
        ids = torch.cat([row, torch.tensor([extra])], dim=1)
        cache = copy.copy(begun)
        cache.layers = [copy.copy(layer) for layer in begun.layers]
        same(generate(model, ids, past_key_values=cache), generate(model, ids, use_cache=False))
    assert begun.get_seq_length() == LENGTH


@torch.no_grad()
def test_a_beginning_before_sop(model, case, row):
    cut = LENGTH // 2
    begun = model(row[:, :cut], use_cache=True).past_key_values
    if case["generation"] == 1:
        with pytest.raises(ModelError, match=BOTH_WAYS):
            model(row[:, cut:], past_key_values=begun)
        with pytest.raises(ModelError, match=BOTH_WAYS):
            generate(model, row, past_key_values=begun)
    else:
        same(generate(model, row, past_key_values=begun), generate(model, row, use_cache=False))


@torch.no_grad()
def test_a_cropped_cache(model, row):
    expected = model(row).logits
    cache = model(row, use_cache=True).past_key_values
    cache.crop(-5)
    found = model(row[:, -5:], past_key_values=cache).logits
    torch.testing.assert_close(found, expected[:, -5:], atol=1e-4, rtol=0)


@torch.no_grad()
def test_rows_of_a_cache_repeated(model, batch):
    first = model(**batch, use_cache=True).past_key_values
    first.batch_repeat_interleave(2)
    turn = {name: t.repeat_interleave(2, dim=0) for name, t in batch.items()}
    turn["input_ids"] = torch.cat([turn["input_ids"], torch.arange(20, 24)[:, None]], dim=1)
    turn["attention_mask"] = torch.cat([turn["attention_mask"], torch.ones(4, 1).long()], dim=1)
    found = model(turn["input_ids"][:, -1:], turn["attention_mask"], past_key_values=first)
    torch.testing.assert_close(found.logits, model(**turn).logits[:, -1:], atol=1e-4, rtol=0)


def test_prompt_lookup(model, row):
    """Candidates are taken from the prompt, and those that are wrong are cropped from the cache."""
    ids = torch.cat([row, generate(model, row).sequences[:, LENGTH : LENGTH + 3], row[:, -4:]], 1)
    expected = generate(model, ids, max_new_tokens=12, use_cache=False)
    same(generate(model, ids, max_new_tokens=12, prompt_lookup_num_tokens=4), expected)


@pytest.mark.parametrize("same_model", [True, False])
def test_assisted_generation(model, row, same_model):
    assistant = copy.deepcopy(model)
    if not same_model:
        assistant.base_model.prefix_encoder = None
        with torch.no_grad():
            for weight in assistant.parameters():
                weight.add_(0.02 * torch.randn_like(weight))
    assistant.generation_config.eos_token_id = None
    found = generate(model, row, assistant_model=assistant)
    same(found, generate(model, row, use_cache=False))


@pytest.mark.parametrize("chunk", [3, LENGTH // 2 + 2, LENGTH])
def test_prefill_in_chunks(model, case, batch, chunk):
    if case["generation"] == 1 and chunk == 3:
        with pytest.raises(ModelError, match=BOTH_WAYS):
            generate(model, **batch, prefill_chunk_size=chunk)
        return
    if case["generation"] == 1 and chunk < LENGTH:
        batch = {name: t[:1] for name, t in batch.items()}  # the other's <sop> stands further on
    expected = generate(model, **batch, use_cache=False)
    same(generate(model, **batch, prefill_chunk_size=chunk), expected)


def test_a_cache_of_fixed_size(model, batch):
    expected = generate(model, **batch, use_cache=False)
    found = generate(model, **batch, cache_implementation="static")
    assert isinstance(found.past_key_values, StaticCache)
    same(found, expected)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams(model, batch, options):
    expected = generate(model, **batch, **options, use_cache=False)
    for kind in ({}, {"cache_implementation": "static"}):
        found = generate(model, **batch, **options, **kind)
        assert found.sequences.tolist() == expected.sequences.tolist()
        assert len({tuple(ids) for ids in found.sequences.tolist()}) == len(found.sequences)


def test_sampling(model, batch):
    options = {"do_sample": True, "num_return_sequences": 3, "temperature": 1.5, "top_p": 0.9}
    drawn = []
    for kind in ({"use_cache": False}, {}, {"cache_implementation": "static"}):
        torch.manual_seed(3)
        drawn.append(generate(model, **batch, **options, **kind).sequences.tolist())
    assert drawn[0] == drawn[1] == drawn[2]
    assert len({tuple(ids) for ids in drawn[0]}) > 3


@torch.no_grad()
def test_a_cache_given_by_the_caller_is_filled(model, row):
    cache = DynamicCache()
    outputs = model(row, past_key_values=cache, use_cache=True)
    assert outputs.past_key_values is cache and cache.get_seq_length() == LENGTH


@torch.no_grad()
def test_a_prefix_switched_off_between_two_calls(model, row):
    if model.base_model.prefix_encoder is None:
        pytest.skip("has none")
    cache = model(row, use_cache=True).past_key_values
    with (
        prefix_disabled(model),
        pytest.raises(ModelError, match=r"prefix of 5, .* one of 0 tokens"),
    ):
        model(row[:, -1:], past_key_values=cache)


def test_a_cache_does_not_go_with_gradient_checkpointing(model, row):
    model = copy.deepcopy(model).train()
    model.gradient_checkpointing_enable()
    assert model(row).past_key_values is None, "as of the library's models"
    with pytest.raises(ModelError, match=r"does not go with gradient checkpointing, .* or eval"):
        model(row, past_key_values=DynamicCache())
