"""`ptune export`: one prefix in other programs, and back."""

import json
import shutil

import pytest
import torch
from fixtures.checkpoints import small_case
from safetensors.torch import load_file, save_file
from transformers import GlmForCausalLM

from ptune import load_model
from ptune.base.folder import find_base_model
from ptune.checkpoint.prefix import read_prefix
from ptune.cli import app
from ptune.commands.export import OFFICIAL_FILE, STATES_FILE, export_base, export_prefix
from ptune.errors import CheckpointError, ConfigError
from ptune.models.prefix_encoder import shown_prefix

LATER = [(2, {}), (3, {}), (2, {"rope_ratio": 16}), (3, {"rope_ratio": 50})]
LATER += [(4, {"rope_ratio": 500})]
IDS = torch.tensor([[64790 % 320, 17, 201, 44, 99, 150, 23, 8]])


@pytest.fixture
def folder(request, model_folder):
    generation, settings = getattr(request, "param", (3, {}))
    projected = settings.pop("projected", False) if isinstance(settings, dict) else False
    return model_folder(small_case(generation, prefix_projection=projected, **settings))


def base_of(folder):
    return find_base_model(str(folder))


@pytest.fixture
def own(folder):
    return load_model(folder, folder / "prefix", dtype="float32", device="cpu")


def greedy(model, **more):
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        return model.generate(
            input_ids=IDS, attention_mask=torch.ones_like(IDS), **settings | more
        ).tolist()


@pytest.mark.parametrize("folder", LATER, ids=str, indirect=True)
def test_peft_computes_the_same(peft, folder, own, tmp_path):
    glm = GlmForCausalLM.from_pretrained(
        export_base(base_of(folder), tmp_path / "glm"), dtype=torch.float32
    )
    adapter = export_prefix(base_of(folder), folder / "prefix", tmp_path / "adapter", "peft")
    theirs = peft.PeftModel.from_pretrained(glm, adapter).eval()
    with torch.inference_mode():
        bare = glm(input_ids=IDS).logits
        expected = own(input_ids=IDS).logits
        found = theirs(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (expected - bare).abs().max() > 0.01
    assert greedy(theirs) == greedy(own)


@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "CARTRIDGE"])
@pytest.mark.parametrize("folder", LATER, ids=str, indirect=True)
def test_there_and_back(folder, own, tmp_path, kind):
    adapter = export_prefix(base_of(folder), folder / "prefix", tmp_path / "adapter", "peft")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": kind}))
    back = load_model(folder, adapter, dtype="float32", device="cpu")
    torch.testing.assert_close(shown_prefix(back), shown_prefix(own))


def test_an_adapter_that_peft_has_trained(peft, folder, tmp_path):
    glm = GlmForCausalLM.from_pretrained(
        export_base(base_of(folder), tmp_path / "glm"), dtype=torch.float32
    )
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7)
    theirs = peft.get_peft_model(glm, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.prompt_encoder.parameters():
            parameter.normal_(std=0.5)
    theirs.save_pretrained(tmp_path / "adapter")
    with torch.inference_mode():
        expected = theirs.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        own = load_model(folder, tmp_path / "adapter", dtype="float32", device="cpu")
        torch.testing.assert_close(own(input_ids=IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_projection_is_computed(model_folder, tmp_path):
    folder = model_folder(small_case(3, prefix_projection=True))
    own = load_model(folder, folder / "prefix", dtype="float32", device="cpu")
    adapter = export_prefix(base_of(folder), folder / "prefix", tmp_path / "adapter", "peft")
    back = load_model(folder, adapter, dtype="float32", device="cpu")
    torch.testing.assert_close(shown_prefix(back), shown_prefix(own))


@pytest.mark.parametrize("folder", [(1, {}), (3, {})], ids=str, indirect=True)
def test_other_formats(folder, own, tmp_path):
    states = export_prefix(base_of(folder), folder / "prefix", tmp_path / "s", "safetensors")
    found, shown = load_file(states / STATES_FILE), shown_prefix(own)
    assert torch.equal(found["layers.1.keys"], shown[1, 0]) and len(found) == 2 * len(shown)
    official = export_prefix(base_of(folder), folder / "prefix", tmp_path / "o", "official")
    loaded = torch.load(official / OFFICIAL_FILE, weights_only=True)
    key = "transformer.prefix_encoder.embedding.weight"
    assert torch.equal(loaded[key], read_prefix(folder / "prefix")["embedding.weight"])
    assert json.loads((official / "config.json").read_text())["pre_seq_len"] == 5
    back = load_model(folder, official, dtype="float32", device="cpu")
    assert torch.equal(shown_prefix(back), shown)


def test_what_peft_does_not_know(model_folder, tmp_path):
    folder = model_folder(small_case(1))
    with pytest.raises(CheckpointError, match="whose tokens have two positions each, and an"):
        export_prefix(base_of(folder), folder / "prefix", tmp_path / "new", "peft")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="is ChatGLM-6B, which transformers has no model of its"):
        export_base(base_of(folder), tmp_path / "new")
    quantized = model_folder(small_case(3))
    base = base_of(quantized)
    base.config["quantization_bit"] = 4
    with pytest.raises(ConfigError, match="have 4 bits, in which no other program reads them"):
        export_base(base, tmp_path / "new")


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({"peft_type": "IA3"}, {}, r"peft_type 'IA3' in .* is no prefix; take an adapter of PRE"),
        (
            {"num_layers": 1},
            {},
            "num_layers 1 in .* does not fit .*, which has 2; pass the base mo",
        ),
        ({"num_attention_heads": 4}, {}, "num_attention_heads 4 in .* does not fit .* which has 2"),
        ({"token_dim": 8}, {}, "token_dim 8 in .* does not fit .*, which has 16"),
        ({"num_virtual_tokens": 4}, {}, "num_virtual_tokens 4 in .* does not go with prompt_embed"),
        ({}, {"more": torch.zeros(1)}, r"holds more \[1\], prompt_embeddings .* instead of prompt"),
        ({}, {"prompt_embeddings": torch.zeros(5, 8)}, r"embedding.weight \[5, 8\] of the prefix"),
        (None, {}, "the adapter in .* cannot be read .*; restore it, or take another one"),
    ],
)
def test_damaged_adapters(folder, tmp_path, config, tensors, said):
    adapter = export_prefix(base_of(folder), folder / "prefix", tmp_path / "adapter", "peft")
    file, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    text = "{" if config is None else json.dumps(json.loads(file.read_text()) | config)
    file.write_text(text)
    save_file(load_file(weights) | tensors, weights)
    with pytest.raises(CheckpointError, match=said):
        load_model(folder, adapter, dtype="float32", device="cpu")


class TestCommand:
    def run(self, *arguments):
        try:
            app(["export", *map(str, arguments)])
        except SystemExit as end:
            return end.code
        return 0

    def test_all_formats(self, folder, tmp_path, capsys):
        prefix = shutil.copytree(folder / "prefix", tmp_path / "prefix")
        for format in ("peft", "official", "safetensors", "glm"):
            out = tmp_path / format
            assert not self.run("-c", prefix, "-m", folder, "-o", out, "--format", format)
            assert f"{format} in {out}" in capsys.readouterr().out
        assert not self.run("-m", folder, "-o", tmp_path / "again", "--format", "glm")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "--output is missing; pass --output NEW_DIR"),
            (["-o", "new"], "--checkpoint is missing; pass --checkpoint DIR"),
            (["-o", "new", "--format", "glm"], "no model is given; pass --model DIR, or --check"),
            (["-o", ".", "-c", "PREFIX", "-m", "BASE"], "is the folder you are in; pass a new"),
        ],
    )
    def test_refused(self, folder, arguments, said, capsys):
        places = {"PREFIX": folder / "prefix", "BASE": folder}
        assert self.run(*(places.get(word, word) for word in arguments)) == 1
        assert said in capsys.readouterr().err
