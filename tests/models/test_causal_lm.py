"""Models saved, loaded and copied by transformers' own ways: the same logits, with the prefix."""

import copy
import json
import pickle

import pytest
import torch
from fixtures.checkpoints import (
    base_state,
    changed,
    prefix_state,
    small_case,
    small_ids,
    write_json,
    write_model,
    write_weights,
)
from torch import nn
from transformers import pipelines

from ptune import load_model, load_tokenizer
from ptune.device import linear
from ptune.errors import ModelError
from ptune.models.chatglm import ChatGLMForConditionalGeneration
from ptune.models.chatglm2 import ChatGLM2ForConditionalGeneration
from ptune.models.prefix_encoder import prefix_length

CASES = {
    "chatglm": small_case(1),
    "chatglm-projection": small_case(1, prefix_projection=True),
    "chatglm2": small_case(2),
    "chatglm2-ungrouped": small_case(2, multi_query_attention=False, multi_query_group_num=4),
    "chatglm3-projection": small_case(3, prefix_projection=True),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def folder(case, model_folder):
    return model_folder(case)


def logits(model, case):
    with torch.no_grad():
        return model(small_ids(case, 20)[None]).logits


def loaded(kind, path, **options):
    """By `from_pretrained`, with nothing missing or left over."""
    model, info = kind.from_pretrained(path, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("prefix", [True, False])
def test_saved_and_loaded(case, folder, tmp_path, dtype, prefix):
    model = load_model(folder, folder / "prefix" if prefix else None, dtype=dtype)
    model.save_pretrained(tmp_path)
    again = loaded(type(model), tmp_path)
    assert again.dtype is getattr(torch, dtype), "the file's, where nobody says otherwise"
    assert torch.equal(logits(again, case), logits(model, case))
    assert prefix_length(again.base_model) == (5 if prefix else 0)
    kinds = {n: p.dtype for n, p in again.named_parameters()}
    assert {kinds[n] for n in kinds if "prefix" in n} <= {torch.float32}
    assert {kinds[n] for n in kinds if "prefix" not in n} == {model.dtype}
    assert again.generation_config.to_dict() == model.generation_config.to_dict()
    again.save_pretrained(tmp_path / "twice")
    assert torch.equal(
        logits(load_model(tmp_path / "twice", dtype=dtype), case), logits(model, case)
    )


def test_a_base_folder(case, folder):
    model = load_model(folder, dtype="float32")
    found = loaded(type(model), folder)
    assert torch.equal(logits(found, case), logits(model, case))
    assert found.generation_config.eos_token_id == model.generation_config.eos_token_id
    assert not found.training and not getattr(found.config, "auto_map", None)


def test_a_merged_folder(case, tmp_path):
    """As `ptune merge` leaves it: the prefix among the weights, its length in config.json."""
    write_json(tmp_path / "config.json", case["config"] | case["prefix"])
    write_weights(tmp_path, base_state(case) | prefix_state(case), "safetensors", shards=3)
    model = load_model(tmp_path, dtype="float32")
    assert prefix_length(model.base_model) == 5
    assert torch.equal(logits(loaded(type(model), tmp_path), case), logits(model, case))


@pytest.mark.parametrize("way", ["load_model", "from_pretrained"])
def test_layers_and_head_take_the_fastest_kernels(case, folder, monkeypatch, way):
    """And the logits are those of torch's."""
    model = load_model(folder, dtype="float32")
    if way == "from_pretrained":
        model = loaded(type(model), folder)
    layers = [m for m in model.base_model.layers.modules() if isinstance(m, nn.Linear)]
    assert layers and {type(layer) for layer in [*layers, model.lm_head]} == {linear.Linear}
    monkeypatch.setattr(linear, "_HAS_AVX512", False)
    expected = logits(model, case)
    monkeypatch.setattr(linear, "_HAS_AVX512", True)
    monkeypatch.setattr(linear, "_FEWEST_MULTIPLICATIONS", 0)
    monkeypatch.setattr(linear, "_FEWEST_INPUTS", 0)
    torch.testing.assert_close(logits(model, case), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_precision_and_device_of_the_caller(case, folder, name):
    kind = type(load_model(folder))
    model = loaded(kind, folder, **{name: torch.bfloat16}, device_map="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(model, case), logits(load_model(folder, dtype="bfloat16"), case))


def test_config_of_a_saved_model(case, folder, tmp_path):
    """Official keys all, the precision under both names; what told ChatGLM3 from 2 is kept."""
    model = load_model(folder, folder / "prefix", dtype="bfloat16")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    left_out = {"architectures", "auto_map", "torch_dtype", "transformers_version"}
    official = {k: v for k, v in case["config"].items() if k not in left_out}
    assert official.items() <= config.items()
    assert case["prefix"].items() <= config.items() and "auto_map" not in config


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("bits", ["none", "4", "8"])
def test_copies(case, folder, how, bits):
    model = load_model(folder, folder / "prefix", quantization_bit=bits, dtype="float32")
    other = how(model)
    assert torch.equal(logits(other, case), logits(model, case))
    with torch.no_grad():
        other.base_model.prefix_encoder.embedding.weight.zero_()
    assert not torch.equal(logits(other, case), logits(model, case))


@pytest.mark.parametrize("bits", ["4", "8"])
def test_quantized_models(case, folder, tmp_path, bits):
    """Saved as the official quantized folders are, which the library's loading does not know."""
    model = load_model(folder, folder / "prefix", quantization_bit=bits, dtype="float32")
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, dtype="float32")
    assert torch.equal(logits(again, case), logits(model, case))
    with pytest.raises(ModelError, match=rf"quantization_bit {bits} in .*load_model"):
        type(model).from_pretrained(tmp_path)


def test_nf4_is_not_saved(tmp_path, model_folder):
    pytest.importorskip("bitsandbytes")
    folder = model_folder(small_case(1, hidden_size=64))
    model = load_model(folder, quantization_bit="nf4", dtype="float32")
    with pytest.raises(ModelError, match=r"cannot write weights in nf4, .*ptune merge"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_the_other_generation(model_folder):
    with pytest.raises(ModelError, match=r"padded_vocab_size in .* not of ChatGLM-6B; load"):
        ChatGLMForConditionalGeneration.from_pretrained(model_folder(small_case(2)))
    with pytest.raises(ModelError, match=r"inner_hidden_size in .* ChatGLM2, ChatGLM3 or GLM-4; "):
        ChatGLM2ForConditionalGeneration.from_pretrained(model_folder(small_case(1)))


def test_configurations_that_are_refused(tmp_path):
    folder = write_model(tmp_path / "1", changed(small_case(1), position_encoding_2d=False))
    with pytest.raises(ModelError, match="position_encoding_2d false"):
        ChatGLMForConditionalGeneration.from_pretrained(folder)
    folder = write_model(tmp_path / "2", changed(small_case(2), rmsnorm=False))
    with pytest.raises(ModelError, match="rmsnorm False in config"):
        ChatGLM2ForConditionalGeneration.from_pretrained(folder)


def test_a_model_that_is_used_is_saved_as_before(case, folder, tmp_path):
    """Generating notes nothing on the model that would be saved."""
    model = load_model(folder, folder / "prefix", dtype="float32")
    before = logits(model, case)
    model.generate(small_ids(case, 12)[None], max_new_tokens=3, eos_token_id=None)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(loaded(type(model), tmp_path), case), before)


@pytest.mark.parametrize(
    ("generation", "kind"),
    [
        (1, ChatGLMForConditionalGeneration),
        (2, ChatGLM2ForConditionalGeneration),
        (3, ChatGLM2ForConditionalGeneration),
    ],
)
def test_scaled_positions(tmp_path, generation, kind, recwarn):
    scaling = {"type": "linear", "factor": 2.0}
    folder = write_model(tmp_path / "a", changed(small_case(generation), rope_scaling=scaling))
    with pytest.raises(
        ModelError, match=r"^rope_scaling {.*} in .*is not null, as in all released"
    ):
        load_model(folder)
    with pytest.raises(
        ModelError, match=r"^rope_scaling {.*} in config.json is of no released mod"
    ):
        kind.from_pretrained(folder)
    assert not [warning for warning in recwarn if issubclass(warning.category, FutureWarning)]


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_pipeline_complains_of_nothing(generation, toy_model, monkeypatch):
    said = []
    monkeypatch.setattr(pipelines.base.logger, "error", said.append)
    folder = toy_model(generation)
    model, tokenizer = load_model(folder, device="cpu"), load_tokenizer(folder)
    answer = pipelines.pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert answer([{"role": "user", "content": "x"}], max_new_tokens=1)
    assert said == []
