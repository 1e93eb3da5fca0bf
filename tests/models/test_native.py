"""A prefix in front of models that transformers has itself."""

import shutil
import warnings

import pytest
import torch
from fixtures.native_models import FAMILIES, write_native
from transformers import AutoModelForCausalLM

from ptune import load_model
from ptune.checkpoint.prefix import attach_prefix
from ptune.errors import ModelError
from ptune.generation.generate import generate_all
from ptune.generation.sampling import Sampling
from ptune.models.prefix_encoder import PrefixEncoder, prefix_disabled
from ptune.models.text_prefix import start_from, text_states

TEXT, QUESTION = [*range(20, 29)], [40, 41, 50, 60, 61]
PROMPTS = [[7, 9, 30], [*range(30, 60)], [5], [*range(100, 117)]]
# Cohere scales its logits, Granite divides them; both windows of Exaone 4 are in one model.
MORE = {
    "cohere": {"logit_scale": 0.5},
    "granite": {"logits_scaling": 3.0},
    "exaone4": {"sliding_window": 16},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}


@pytest.fixture(scope="module", params=[*FAMILIES, *MORE])
def folder(request, tmp_path_factory):
    kind = request.param
    return write_native(tmp_path_factory.mktemp(kind) / kind, kind, **MORE.get(kind, {}))


@pytest.fixture
def model(folder):
    return load_model(folder)


def with_prefix(model, length=9, seed=1):
    encoder = PrefixEncoder(model.base_model.prefix_shape, length, dropout=0.0)
    torch.manual_seed(seed)
    torch.nn.init.normal_(encoder.embedding.weight, 0, 0.5)
    attach_prefix(model, encoder)
    return model.eval()


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def continued(model, prompt, count):
    """Greedy, with all computed anew for each token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(logits(model, ids)[-1].argmax()))
    return ids[len(prompt) :]


def test_bare_is_the_library(folder, model):
    library = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, type(library))
    for ids in PROMPTS:
        with torch.no_grad():
            expected = library(input_ids=torch.tensor([ids])).logits[0]
        torch.testing.assert_close(logits(model, ids), expected, atol=1e-5, rtol=1e-5)


def test_a_text_as_prefix_is_the_text(model):
    bare = logits(model, TEXT + QUESTION)[len(TEXT) :]
    alone = logits(model, QUESTION)
    states = text_states(model, TEXT)
    encoder = PrefixEncoder(model.base_model.prefix_shape, len(TEXT), dropout=0.0)
    attach_prefix(model, encoder)
    start_from(encoder, states)
    found = logits(model, QUESTION)
    torch.testing.assert_close(found, bare, atol=1e-4, rtol=1e-4)
    assert (found - alone).abs().max() > 1e-2
    with prefix_disabled(model):
        torch.testing.assert_close(logits(model, QUESTION), alone)


def test_slots_say_what_a_lone_prompt_says(model):
    with_prefix(model)
    sampling = Sampling(max_new_tokens=24)
    answers = dict(pair for pairs in generate_all(model, PROMPTS, 3, sampling) for pair in pairs)
    for number, prompt in enumerate(PROMPTS):
        expected = continued(model, prompt, len(answers[number]))
        assert answers[number] == expected
        assert answers[number]
    library = model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=24)[0]
    assert library[len(PROMPTS[1]) :].tolist()[: len(answers[1])] == answers[1]


def test_padding_of_a_batch_is_not_seen(model):
    with_prefix(model)
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask).logits[:, -1]
    alone = torch.stack([logits(model, prompt)[-1] for prompt in PROMPTS])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def loss_and_gradient(model):
    ids = torch.tensor([PROMPTS[1], PROMPTS[1][::-1]])
    labels = ids.clone()
    labels[:, :20] = -100
    model.zero_grad()
    loss = model(input_ids=ids, labels=labels, label_logits_only=True).loss
    loss.backward()
    return loss.item(), model.base_model.prefix_encoder.embedding.weight.grad.clone()


def test_the_gradient_is_of_the_loss(model):
    """Against two losses a little apart, along the gradient."""
    weight = with_prefix(model).train().base_model.prefix_encoder.embedding.weight
    if model.config.model_type == "qwen3_moe":
        pytest.skip("which expert is asked jumps")
    _, gradient = loss_and_gradient(model)
    step = 1e-2 * gradient / gradient.norm()
    changed = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * step
        changed.append(loss_and_gradient(model)[0])
        with torch.no_grad():
            weight -= sign * step
    slope = (changed[0] - changed[1]) / 2 / step.norm().item()
    assert slope == pytest.approx(gradient.norm().item(), rel=0.05)
    assert all(weight.grad is None for n, weight in model.named_parameters() if "prefix" not in n)


def test_gradient_checkpointing(folder, model):
    with_prefix(model).train()
    loss, gradient = loss_and_gradient(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable()
    if folder.name == "gpt2":  # whose layers are given no cache then
        message = "gradient checkpointing of gpt2 leaves the prefix out; train without --gradient-"
        with pytest.raises(ModelError, match=message):
            loss_and_gradient(model)
        return
    again, same = loss_and_gradient(model)
    assert again == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(same, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("bits", ["8", "4"])
def test_quantized(folder, model, bits):
    if folder.name == "qwen3_moe":
        pytest.skip("its experts are no linear layers")
    packed = load_model(folder, quantization_bit=bits)
    expected, found = logits(model, PROMPTS[1]), logits(packed, PROMPTS[1])
    difference = (found - expected).norm() / expected.norm()
    assert 0 < difference < (0.05 if bits == "8" else 0.8)
    with_prefix(packed).train()
    assert torch.isfinite(loss_and_gradient(packed)[1]).all()


def test_learned_positions_run_out(tmp_path):
    model = with_prefix(load_model(write_native(tmp_path, "gpt2", n_positions=32)), length=20)
    logits(model, [*range(12)])
    message = "33 tokens, prefix included, are more than the 32 positions that gpt2 has learned"
    with pytest.raises(ModelError, match=message):
        logits(model, [*range(13)])
    with pytest.raises(ModelError, match="are more than the 32 positions"):
        list(generate_all(model, [[1, 2]], 1, Sampling(max_new_tokens=20)))


def test_a_prefix_has_no_place_in_a_folder_of_the_library(tmp_path):
    model = load_model(write_native(tmp_path / "base", "qwen3"))
    model.save_pretrained(tmp_path / "copy")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "base" / name, tmp_path / "copy")
    assert torch.equal(logits(load_model(tmp_path / "copy"), TEXT), logits(model, TEXT))
    with_prefix(model)
    with pytest.raises(ModelError, match=r"no place for a prefix .*; put it .* with ptune merge"):
        model.save_pretrained(tmp_path / "with")
