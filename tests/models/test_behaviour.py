"""What every generation must do, whatever its weights: caches, batches, precision, gradients."""

import copy
import warnings

import pytest
import torch
from fixtures.checkpoints import small_case, small_ids

from ptune import load_model
from ptune.models.prefix_encoder import prefix_disabled

CASES = {
    "chatglm": small_case(1),
    "chatglm-projection": small_case(1, prefix_projection=True),
    "chatglm2": small_case(2),
    "chatglm2-projection": small_case(2, prefix_projection=True),
    "chatglm2-ungrouped": small_case(2, multi_query_attention=False, multi_query_group_num=4),
    "chatglm3": small_case(3),
}
LENGTH = 24


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def folder(case, model_folder):
    return model_folder(case)


@pytest.fixture(scope="module")
def shared_model(folder):
    return load_model(folder, checkpoint=folder / "prefix")


@pytest.fixture
def model(shared_model):
    """One that a test may change."""
    return copy.deepcopy(shared_model)


@pytest.fixture
def row(case):
    return small_ids(case, LENGTH)[None]


def batch(case, side):
    """Three rows of different length, padded, and their mask."""
    pad = case["config"]["pad_token_id"]
    rows = [small_ids(case, length, seed) for seed, length in enumerate((LENGTH, 13, 18))]
    ids, mask = torch.full((3, LENGTH), pad), torch.zeros(3, LENGTH, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(LENGTH - len(row), None) if side == "left" else slice(len(row))
        ids[i, place], mask[i, place] = row, 1
    return rows, ids, mask


def labels_of(case, ids, mask):
    return ids.masked_fill((mask == 0) | (torch.arange(ids.shape[1]) < LENGTH // 2 + 3), -100)


def close(found, expected, atol=2e-4):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("prefix", [True, False])
@torch.no_grad()
def test_token_by_token_equals_one_forward(shared_model, row, prefix):
    model = shared_model

    def check():
        full = model(input_ids=row).logits
        split = LENGTH // 2 + 2
        outputs = model(input_ids=row[:, :split], use_cache=True)
        logits = [outputs.logits]
        for i in range(split, LENGTH):
            cache = outputs.past_key_values
            outputs = model(input_ids=row[:, i : i + 1], past_key_values=cache, use_cache=True)
            logits.append(outputs.logits)
        close(torch.cat(logits, dim=1), full)
        return full

    with_prefix = check()
    if not prefix:
        with prefix_disabled(model):
            assert not torch.allclose(check(), with_prefix, atol=1e-2)


@torch.no_grad()
def test_several_tokens_after_a_cache(case, shared_model, row):
    full = shared_model(input_ids=row).logits
    split = LENGTH // 2 + 3
    cache = shared_model(input_ids=row[:, :split], use_cache=True).past_key_values
    outputs = shared_model(input_ids=row[:, split:], past_key_values=cache, use_cache=True)
    close(outputs.logits, full[:, split:])
    assert outputs.past_key_values.get_seq_length() == LENGTH, "text alone counts"


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_batch_equals_single_rows(case, shared_model, side):
    rows, ids, mask = batch(case, side)
    logits = shared_model(input_ids=ids, attention_mask=mask).logits
    assert logits.isfinite().all()
    for i, row in enumerate(rows):
        close(logits[i][mask[i].bool()], shared_model(input_ids=row[None]).logits[0])


@torch.no_grad()
def test_padded_batch_token_by_token(case, shared_model):
    _, ids, mask = batch(case, "left")
    full = shared_model(input_ids=ids, attention_mask=mask).logits
    split = LENGTH - 4
    outputs = shared_model(input_ids=ids[:, :split], attention_mask=mask[:, :split], use_cache=True)
    for i in range(split, LENGTH):
        outputs = shared_model(
            input_ids=ids[:, i : i + 1],
            attention_mask=mask[:, : i + 1],
            past_key_values=outputs.past_key_values,
            use_cache=True,
        )
        close(outputs.logits[:, 0], full[:, i])


def generate(model, ids, mask, **kwargs):
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None} | kwargs
    return model.generate(input_ids=ids, attention_mask=mask, **options)[:, ids.shape[1] :]


def test_generation_with_and_without_cache(case, shared_model):
    rows, ids, mask = batch(case, "left")
    new = generate(shared_model, ids, mask)
    assert new.tolist() == generate(shared_model, ids, mask, use_cache=False).tolist()
    singles = [generate(shared_model, r[None], torch.ones_like(r)[None])[0].tolist() for r in rows]
    assert new.tolist() == singles


def test_beams(case, shared_model):
    _, ids, mask = batch(case, "left")
    beams = generate(shared_model, ids, mask, num_beams=3, num_return_sequences=2)
    assert beams.shape == (6, 6)
    assert beams[0].tolist() != beams[1].tolist()
    options = {"num_beams": 3, "num_return_sequences": 2, "use_cache": False}
    assert beams.tolist() == generate(shared_model, ids, mask, **options).tolist()

    def score(new):
        row = torch.cat([ids[:1], new[None]], dim=1)
        ones = torch.ones(1, 6, dtype=torch.long)
        with torch.no_grad():
            logits = shared_model(row, attention_mask=torch.cat([mask[:1], ones], dim=1)).logits
        steps = logits[0, LENGTH - 1 : -1].log_softmax(dim=-1)
        return steps.gather(1, new[:, None]).sum().item()

    assert score(beams[0]) >= score(beams[1])
    assert score(beams[0]) >= score(generate(shared_model, ids, mask)[0]) - 1e-4


def test_sampling_several_answers(case, shared_model):
    _, ids, mask = batch(case, "left")
    torch.manual_seed(0)
    options = {"do_sample": True, "num_return_sequences": 2, "top_p": 0.9, "temperature": 1.5}
    new = generate(shared_model, ids, mask, **options)
    assert new.shape == (6, 6)
    assert new[0].tolist() != new[1].tolist()


def test_generation_stops(case, shared_model):
    _, ids, mask = batch(case, "left")
    first = generate(shared_model, ids, mask)[0, 0].item()
    stopped = generate(shared_model, ids[:1], mask[:1], eos_token_id=first)
    assert stopped.tolist() == [[first]]
    assert shared_model.generation_config.eos_token_id[0] == case["config"]["eos_token_id"]
    assert not shared_model.generation_config.do_sample


@torch.no_grad()
def test_logits_to_keep(shared_model, row):
    full = shared_model(input_ids=row).logits
    close(shared_model(input_ids=row, logits_to_keep=2).logits, full[:, -2:])
    places = torch.tensor([3, 7])
    close(shared_model(input_ids=row, logits_to_keep=places).logits, full[:, places])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@torch.no_grad()
def test_half_precision_is_close(case, folder, shared_model, dtype):
    half = load_model(folder, checkpoint=folder / "prefix", dtype=dtype)
    kinds = {p.dtype for p in half.parameters() if not p.requires_grad}
    assert kinds == {getattr(torch, dtype)}
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    assert {b.dtype for b in half.buffers() if b.is_floating_point()} == {torch.float32}
    _, ids, mask = batch(case, "left")
    expected = shared_model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    found = half(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    assert found.dtype == getattr(torch, dtype)
    error = (found.float() - expected).norm() / expected.norm()
    assert error < {"bfloat16": 0.1, "float16": 0.02}[dtype]


def test_only_the_prefix_learns(case, model):
    _, ids, mask = batch(case, "right")
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    prefix = {name for name, _ in model.named_parameters() if ".prefix_encoder." in name}
    assert trainable == prefix and prefix
    labels = labels_of(case, ids, mask)
    model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and parameter.grad.any()) == (name in prefix), name


def gradients(model, ids, mask, labels):
    model.zero_grad()
    outputs = model(
        input_ids=ids, attention_mask=mask, labels=labels, label_logits_only=True, use_cache=False
    )
    outputs.loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def test_gradient_checkpointing_gives_equal_gradients(case, model):
    _, ids, mask = batch(case, "right")
    labels = labels_of(case, ids, mask)
    model.train()
    model.base_model.prefix_encoder.dropout.p = 0.0
    expected = gradients(model, ids, mask, labels)
    runs = []
    norm = model.base_model.layers[0].input_layernorm
    norm.register_forward_pre_hook(lambda *_: runs.append(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its new name is younger than 5.0
        model.gradient_checkpointing_enable()
    found = gradients(model, ids, mask, labels)
    assert len(runs) == 2, "the layer is not computed a second time"
    for name, gradient in expected.items():
        close(found[name], gradient, atol=1e-6)


def test_padding_and_label_logits_only_do_not_change_gradients(case, model):
    _, ids, mask = batch(case, "right")
    labels = labels_of(case, ids, mask)
    expected = gradients(model, ids, mask, labels)
    model.zero_grad()
    outputs = model(input_ids=ids, labels=labels)  # nothing looks ahead at padding on the right
    outputs.loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            close(parameter.grad, expected[name], atol=1e-5)


@torch.no_grad()
def test_loss_divided_by_a_given_count(case, model):
    _, ids, mask = batch(case, "right")
    labels = labels_of(case, ids, mask)
    mean = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    count = (labels[:, 1:] != -100).sum()
    total = model(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=1).loss
    close(total / count, mean, atol=1e-5)
    options = {"label_logits_only": True, "num_items_in_batch": count * 2}
    half = model(input_ids=ids, attention_mask=mask, labels=labels, **options).loss
    close(half * 2, mean, atol=1e-5)


@torch.no_grad()
def test_eager_equals_sdpa(case, model):
    assert model.config._attn_implementation == "sdpa"
    _, ids, mask = batch(case, "left")
    sdpa = model(input_ids=ids, attention_mask=mask).logits
    model.set_attn_implementation("eager")
    assert model.base_model.config._attn_implementation == "eager"
    eager = model(input_ids=ids, attention_mask=mask).logits
    close(eager[mask.bool()], sdpa[mask.bool()])


@torch.no_grad()
def test_prefix_dropout_in_training_only(case, model):
    ids = small_ids(case, LENGTH).repeat(2, 1)
    model.base_model.prefix_encoder.dropout.p = 0.5
    quiet = model(input_ids=ids, use_cache=False).logits
    close(quiet[0], quiet[1], atol=1e-5)
    model.train()
    torch.manual_seed(0)
    noisy = model(input_ids=ids, use_cache=False).logits
    assert not torch.allclose(noisy[0], noisy[1], atol=1e-3), "one draw serves the whole batch"
    assert not torch.allclose(noisy[0], quiet[0], atol=1e-3)
