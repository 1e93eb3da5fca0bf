"""LoRA beside our models: what `peft` computes beside the library's own."""

import builtins
import re

import pytest
import torch
from fixtures.beside_peft import compare_losses
from fixtures.checkpoints import small_case, small_ids, write_model
from fixtures.native_models import write_native
from transformers import AutoModelForCausalLM, GlmConfig, GlmForCausalLM

from ptune import load_model
from ptune.errors import ConfigError, ModelError
from ptune.models.lora import (
    LoraForm,
    attach_lora,
    enable_lora,
    find_targets,
    linear_layers,
    lora_parameters,
    short_targets,
)
from ptune.models.trained import bare, describe_trained

PROMPT = [7, 9, 30, 44, 100]
TEXT = [*range(30, 54)]


def draw(model):
    """Values for both matrices, the same for every model with the same layers."""
    generator = torch.Generator().manual_seed(5)
    for _, parameter in sorted(lora_parameters(model)):
        parameter.data.normal_(0, 0.1, generator=generator)


def attach(model, target="all-linear", rank=4, alpha=6):
    form = LoraForm(rank, alpha, find_targets(model, target))
    attach_lora(model, form)
    draw(model)
    return model


def wrap(peft, library, ours, form):
    """The same LoRA in the library's wrapper around its own model."""
    config = peft.LoraConfig(
        r=form.rank,
        lora_alpha=form.alpha,
        target_modules=short_targets(ours, form.modules),
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(library, config)
    named = dict(theirs.named_parameters())
    for name, parameter in lora_parameters(ours):
        their_name = name.replace(".weight", ".default.weight")
        named[f"base_model.model.{their_name}"].data.copy_(parameter.data)
    return theirs, named


@pytest.fixture(scope="module", params=["qwen3", "gpt2", "gemma2", "glm"])
def pair(request, peft, tmp_path_factory):
    """A model with a LoRA here, and the same there; `glm` is a ChatGLM2 of ours."""
    folder = tmp_path_factory.mktemp("lora") / "chatglm2-6b"
    if request.param == "glm":
        ours = load_model(write_model(folder, small_case(2)))
        known = {name: getattr(ours.config, name) for name in GlmConfig().to_dict()}
        known = {k: v for k, v in known.items() if k not in ("architectures", "model_type")}
        library = GlmForCausalLM(GlmConfig(**known))
        library.load_state_dict(ours.state_dict())
    else:
        ours = load_model(write_native(folder, request.param))
        library = AutoModelForCausalLM.from_pretrained(folder)
    theirs, named = wrap(peft, library, attach(ours), ours.lora_form)
    return ours.eval(), theirs.eval(), named


def test_loss_and_gradients_are_those_of_peft(pair):
    ours, theirs, named = pair
    compare_losses(ours, theirs)
    for name, parameter in lora_parameters(ours):
        other = named[f"base_model.model.{name.replace('.weight', '.default.weight')}"]
        assert parameter.grad.abs().max() > 0
        torch.testing.assert_close(parameter.grad, other.grad, atol=1e-6, rtol=1e-3)


def test_greedy_tokens_are_those_of_peft(pair):
    ours, theirs, _ = pair
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        here = ours.generate(ids, max_new_tokens=8)[0].tolist()
        there = theirs.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0].tolist()
    assert here[: len(there)] == there[: len(here)]


@pytest.fixture(scope="module", params=[1, 2, 4])
def chatglm(request, peft, tmp_path_factory):
    names = {1: "chatglm-6b", 2: "chatglm2-6b", 4: "glm-4-9b"}
    folder = tmp_path_factory.mktemp("lora") / names[request.param]
    case = small_case(request.param)
    return write_model(folder, case), small_ids(case, 20)[None]


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_off_is_the_base_and_on_is_not(chatglm):
    folder, ids = chatglm
    base = logits(load_model(folder), ids)
    model = attach(load_model(folder))
    assert describe_trained(model) == "LoRA of rank 4"
    shown = logits(model, ids)
    assert (shown - base).abs().max() > 1e-2
    with bare(model):
        assert torch.equal(logits(model, ids), base)
    assert torch.equal(logits(model, ids), shown)
    enable_lora(model, False)
    assert torch.equal(logits(model, ids), base)


@pytest.mark.parametrize("bits", ["8", "4"])
def test_beside_quantized_weights(chatglm, bits):
    """The same as beside a model that holds what the codes stand for."""
    folder, ids = chatglm
    quantized = load_model(folder, quantization_bit=bits)
    plain = load_model(folder)
    layers = linear_layers(quantized)
    for name, (rows, _) in layers.items():
        weight = quantized.get_submodule(name).dequantize(0, rows, torch.float32)
        plain.get_submodule(name).weight.data.copy_(weight)
    attach(quantized)
    attach(plain)
    assert linear_layers(quantized) == linear_layers(plain) == layers
    torch.testing.assert_close(logits(quantized, ids), logits(plain, ids), atol=1e-5, rtol=1e-4)
    for model in (quantized, plain):
        model(input_ids=ids, labels=ids).loss.backward()
    pairs = zip(lora_parameters(quantized), lora_parameters(plain), strict=True)
    for (_, here), (_, there) in pairs:
        torch.testing.assert_close(here.grad, there.grad, atol=1e-5, rtol=1e-3)


def test_only_the_matrices_are_trained_and_in_float32(chatglm):
    model = attach(load_model(chatglm[0], dtype=torch.bfloat16))
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    matrices = [parameter for _, parameter in lora_parameters(model)]
    assert trained == {id(parameter) for parameter in matrices}
    assert {p.dtype for p in matrices} == {torch.float32}
    assert logits(model, chatglm[1]).dtype == torch.bfloat16


def test_targets(tmp_path):
    model = load_model(write_native(tmp_path, "qwen3"))
    some = find_targets(model, "q_proj, mlp.down_proj")
    assert len(some) == 2 * model.config.num_hidden_layers
    assert {name.rpartition(".")[2] for name in some} == {"q_proj", "down_proj"}
    assert short_targets(model, some) == ["down_proj", "q_proj"]
    assert "lm_head" not in find_targets(model, "all-linear")
    one = find_targets(model, "layers.1.self_attn.q_proj")
    assert short_targets(model, one) == list(one) == ["model.layers.1.self_attn.q_proj"]
    known = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    for target in ("q_proj,lm_head", "proj", "q_proj,"):
        wrong = target.removeprefix("q_proj,")
        message = (
            f"lora_target '{wrong}' is no linear layer of a model of type qwen3; use all-linear, "
            f"or some of {known}"
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            find_targets(model, target)


def test_without_the_library(tmp_path, monkeypatch):
    model = load_model(write_native(tmp_path, "qwen3"))
    known = builtins.__import__

    def absent(name, *arguments, **named):
        if name == "peft":
            raise ModuleNotFoundError("No module named 'peft'", name="peft")
        return known(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    message = "LoRA needs peft, which is not installed; run pip install 'ptune[lora]'"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        attach(model)


def test_save_pretrained_has_no_place_for_it(chatglm, tmp_path):
    message = (
        "save_pretrained has no place for a LoRA in the model's own layout; fold it into the "
        "weights with ptune merge"
    )
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        attach(load_model(chatglm[0])).save_pretrained(tmp_path)
