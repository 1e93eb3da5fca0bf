"""The four generations against what the original code computed, case by case.

`v4` is a GLM-4 with `rope_ratio` 500, and its ids are of `glm4.model`.  Its numbers are those of
ChatGLM3's `modeling_chatglm.py`, which has the prefix, with the base of the frequencies multiplied
as in GLM-4's (torch 2.13, transformers 4.30.2, float32); without the prefix, GLM-4V-9B's own code
gives the same logits to the last bit.  Each continuation is of a prompt alone, token by token.
"""

import pytest
import torch
from fixtures.checkpoints import golden_case

from ptune import load_model
from ptune.generation.generate import generate_all, generate_one
from ptune.generation.sampling import Sampling
from ptune.models.prefix_encoder import prefix_disabled

# Every case in one of the layouts that official folders have.
CASES = [
    ("v1", "bin", 1),
    ("v1-projection", "safetensors", 3),
    ("v1-int4", "bin", 3),
    ("v1-int8", "safetensors", 1),
    ("v2", "safetensors", 3),
    ("v2-projection", "bin", 1),
    ("v2-int4", "safetensors", 1),
    ("v2-32k", "safetensors", 1),
    ("v3", "bin", 3),
    ("v4", "safetensors", 2),
]
KINDS = ("base", "prefix")


@pytest.fixture(scope="module", params=CASES, ids=lambda layout: layout[0])
def layout(request):
    return request.param


@pytest.fixture(scope="module")
def case(layout):
    return golden_case(layout[0])


@pytest.fixture(scope="module")
def models(layout, model_folder):
    folder = model_folder(*layout)
    return {"base": load_model(folder), "prefix": load_model(folder, checkpoint=folder / "prefix")}


def train_batch(case):
    return torch.tensor(case["train_input_ids"]), torch.tensor(case["train_labels"])


def greedy(model, rows, mask):
    new = model.generate(
        input_ids=rows, attention_mask=mask, max_new_tokens=16, do_sample=False, eos_token_id=None
    )
    return new[:, rows.shape[1] :].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_loss(case, models, kind):
    ids, labels = train_batch(case)
    with torch.no_grad():
        logits = models[kind](input_ids=ids).logits
        loss = models[kind](input_ids=ids, labels=labels, label_logits_only=True).loss
    assert loss.item() == pytest.approx(case[f"loss_{kind}"], abs=2e-5)

    values = case["values"]
    rows, columns = values["positions"].T
    sample = logits[rows, columns][:, values["columns"]]
    torch.testing.assert_close(sample, values[f"logits_{kind}"], atol=5e-4, rtol=0)
    is_text = ids != case["config"]["pad_token_id"]
    logsumexp = torch.stack([row.logsumexp(dim=-1) for row in logits])
    torch.testing.assert_close(
        logsumexp[is_text], values[f"logsumexp_{kind}"][is_text], atol=5e-4, rtol=0
    )


def test_base_and_prefix_differ(case):
    assert abs(case["loss_base"] - case["loss_prefix"]) > 1e-3


def test_disabled_prefix_is_the_base_model(case, models):
    ids, labels = train_batch(case)
    with torch.no_grad(), prefix_disabled(models["prefix"]):
        loss = models["prefix"](input_ids=ids, labels=labels, label_logits_only=True).loss
    assert loss.item() == pytest.approx(case["loss_base"], abs=2e-5)


def test_gradients_of_the_prefix(case, models):
    """As training computes them: logits only where there are labels, and no cache."""
    model = models["prefix"]
    model.zero_grad()
    ids, labels = train_batch(case)
    loss = model(input_ids=ids, labels=labels, label_logits_only=True, use_cache=False).loss
    assert loss.item() == pytest.approx(case["loss_prefix"], abs=2e-5)
    loss.backward()
    parameters = dict(model.base_model.prefix_encoder.named_parameters())
    assert parameters.keys() == case["grad_norms"].keys()
    for name, parameter in parameters.items():
        norm = case["grad_norms"][name]
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-3), name
        expected = case["values"][f"grad.{name}"]
        found = parameter.grad.flatten()[: len(expected)]
        assert (found - expected).norm() <= 1e-3 * expected.norm() + 1e-9, name


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_continuation(case, models, kind):
    """Of the left-padded batch, and of its rows one by one."""
    rows = torch.tensor(case["prompt_ids"])
    mask = (rows != case["config"]["pad_token_id"]).long()
    assert greedy(models[kind], rows, mask) == case[f"new_ids_{kind}"]
    alone = [
        greedy(models[kind], row[real.bool()][None], torch.ones(1, int(real.sum())).long())[0]
        for row, real in zip(rows, mask, strict=True)
    ]
    assert alone == case[f"new_ids_{kind}"]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_continuation_in_slots(case, models, kind, monkeypatch):
    """Of all prompts at once, of some after others, and token by token."""
    model, expected = models[kind], case[f"new_ids_{kind}"]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [])
    pad, sampling = case["config"]["pad_token_id"], Sampling(max_new_tokens=16)
    prompts = [[token for token in row if token != pad] for row in case["prompt_ids"]]
    for batch_size in (len(prompts), 3, 1):
        groups = generate_all(model, prompts, batch_size, sampling)
        found = dict(pair for group in groups for pair in group)
        assert [found[i] for i in range(len(prompts))] == expected
    assert [list(generate_one(model, prompt, sampling)) for prompt in prompts] == expected
