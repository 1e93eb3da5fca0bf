"""The folder of a LoRA: what is read, and what is wrong with it."""

import dataclasses
import json
import re

import pytest
import torch
from fixtures.checkpoints import small_case, write_model
from fixtures.native_models import write_native
from safetensors.torch import load_file, save_file

from ptune import load_model
from ptune.base.folder import find_base_model
from ptune.base.weights import WeightFiles
from ptune.checkpoint.folding import Folding
from ptune.checkpoint.lora import digest_lora, is_lora, load_lora, read_lora, save_lora
from ptune.checkpoint.metadata import CheckpointConfig
from ptune.checkpoint.method import method_in
from ptune.errors import CheckpointError
from ptune.models.build import empty_model
from ptune.models.lora import LoraForm, attach_lora, find_targets, lora_parameters

pytestmark = pytest.mark.usefixtures("peft")

FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_native(tmp_path_factory.mktemp("base") / "qwen", "qwen3")


@pytest.fixture
def folder(peft, base, tmp_path):
    """A LoRA of rank 2 beside queries and values, saved."""
    model = load_model(base)
    attach_lora(model, LoraForm(2, 3, find_targets(model, "q_proj,v_proj")))
    for _, parameter in lora_parameters(model):
        torch.nn.init.normal_(parameter, 0, 0.1)
    save_lora(model, tmp_path, "Qwen/Qwen3")
    return tmp_path


def configured(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def stored(folder, change):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def refused(folder):
    with pytest.raises(CheckpointError) as caught:
        read_lora(folder)
    return str(caught.value)


def test_comes_back(folder, base):
    assert is_lora(folder) and method_in(folder).name == "lora"
    form, tensors = read_lora(folder)
    assert (form.rank, form.alpha, form.scale, len(form.modules)) == (2, 3, 1.5, 6)
    model = load_model(base, folder)
    for name, parameter in lora_parameters(model):
        assert torch.equal(parameter, tensors[name])
    assert not model.training


def test_what_the_library_saves_is_read(peft, base, tmp_path):
    """Of whatever trains with it, such as LLaMA-Factory."""
    from transformers import AutoModelForCausalLM

    library = AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", use_rslora=True, task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(library, config)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    theirs.save_pretrained(tmp_path)
    ids = torch.tensor([[7, 9, 30, 44]])
    ours = load_model(base, tmp_path)
    assert ours.lora_form.scale == 8 / 2
    with torch.no_grad():
        expected = theirs.eval()(input_ids=ids).logits
        torch.testing.assert_close(ours(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_the_library_reads_what_is_saved(peft, base, folder):
    from transformers import AutoModelForCausalLM

    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    ids = torch.tensor([[7, 9, 30, 44]])
    with torch.no_grad():
        here = load_model(base, folder)(input_ids=ids).logits
        torch.testing.assert_close(theirs.eval()(input_ids=ids).logits, here, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"q_proj": 4}),
        ("init_lora_weights", "pissa"),
        ("kasa_config", {"beta": 1e-4}),
        ("use_something_new", 3),
    ],
)
def test_more_than_low_rank_matrices(name, value, folder):
    configured(folder, **{name: value})
    file = folder / "adapter_config.json"
    assert refused(folder) == (
        f"{name} {value!r} in {file} is of no plain LoRA; merge that adapter into its base with "
        "peft, and pass the merged model with --model"
    )


@pytest.mark.parametrize("rank", [0, -1, "2", True, None])
def test_a_rank_that_is_none(rank, folder):
    configured(folder, r=rank)
    file = folder / "adapter_config.json"
    assert refused(folder) == f"r {rank!r} in {file} is no rank; take the file as it was saved"


@pytest.mark.parametrize("alpha", [0, -1, "2", True, None])
def test_a_scale_that_is_none(alpha, folder):
    configured(folder, lora_alpha=alpha)
    assert refused(folder) == (
        f"lora_alpha {alpha!r} in {folder / 'adapter_config.json'} is no number above 0; take the "
        "file as it was saved"
    )


@pytest.mark.parametrize("value", ["false", 2, [True]])
def test_a_scale_of_neither_kind(value, folder):
    configured(folder, use_rslora=value)
    assert refused(folder) == (
        f"use_rslora {value!r} in {folder / 'adapter_config.json'} is neither true nor false; take "
        "the file as it was saved"
    )


def test_another_rank_than_is_claimed(folder):
    configured(folder, r=4)
    name = FIRST.removeprefix("base_model.model.")
    assert refused(folder) == (
        f"r 4 in {folder / 'adapter_config.json'} does not go with {name} beside it, which has "
        "rank 2; take all files of one checkpoint"
    )


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "v_proj", "k_proj"]])
def test_other_layers_than_are_claimed(targets, folder):
    configured(folder, target_modules=targets)
    odd = "k_proj" if "k_proj" in targets else "model.layers.0.self_attn.v_proj"
    assert refused(folder) == (
        f"target_modules in {folder / 'adapter_config.json'} do not go with "
        f"adapter_model.safetensors beside it: {odd} is in one of them alone; take all files of "
        "one checkpoint"
    )


def test_a_config_that_is_damaged(folder):
    (folder / "adapter_config.json").write_text("{")
    assert re.search(r"is damaged .*; restore it, or take another", refused(folder))
    message = "the adapter in .* cannot be read .*; restore it, or take another one"
    with pytest.raises(CheckpointError, match=message):
        method_in(folder).check(folder)


def test_of_another_method_than_is_claimed(folder):
    """A prefix beside a LoRA is not taken in its place, nor a LoRA in the place of a prefix."""
    config = CheckpointConfig("x", "f" * 64, "chat_template", 4, False)
    message = "^method '{}' in {}/ptune_config.json does not go with the {} beside it; take all fi"
    config.write(folder)
    with pytest.raises(CheckpointError, match=message.format("p-tuning", folder, "LoRA")):
        method_in(folder)
    dataclasses.replace(config, method="lora").write(folder)
    assert is_lora(folder)
    (folder / "prefix_encoder.safetensors").touch()
    with pytest.raises(CheckpointError, match=message.format("lora", folder, "prefix")):
        method_in(folder)


def test_half_of_its_files(folder):
    (folder / "adapter_config.json").unlink()
    message = (
        rf"^no checkpoint in {folder} \(found adapter_model.safetensors\); pass a folder with "
        r"prefix_encoder.safetensors, adapter_config.json and adapter_model.safetensors, "
        r"pytorch_model.bin or model.safetensors$"
    )
    with pytest.raises(CheckpointError, match=message):
        method_in(folder)


def test_matrices_that_are_not_there_or_strange(folder):
    stored(folder, lambda tensors: tensors.pop(FIRST))
    name = FIRST.removeprefix("base_model.model.")
    assert refused(folder) == (
        f"the LoRA in {folder} lacks {name}; the checkpoint is incomplete, take another one"
    )
    stored(folder, lambda tensors: tensors.update({FIRST: torch.full((2, 32), float("nan"))}))
    assert refused(folder) == (
        f"{FIRST} in {folder / 'adapter_model.safetensors'} holds NaN or infinity, its training "
        "failed; take an earlier checkpoint"
    )
    stored(folder, lambda tensors: tensors.update({FIRST: torch.ones(2, 32), "x": torch.ones(3)}))
    assert refused(folder) == (
        f"x [3] in {folder / 'adapter_model.safetensors'} is no matrix of a LoRA; take the file as "
        "it was saved"
    )
    stored(folder, lambda tensors: tensors.clear())
    assert "holds nothing; take another checkpoint" in refused(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"\x00")
    assert "is truncated or damaged" in refused(folder)


def test_of_another_model(folder, tmp_path):
    other = write_model(tmp_path / "chatglm2-6b", small_case(2))
    model = load_model(other)
    message = (
        rf"^model.layers.0.self_attn.q_proj \[32, 32\] of the LoRA in {re.escape(str(folder))} "
        r"does not fit .*chatglm2-6b, where that layer .*; pass the base model that this LoRA was "
        r"trained on$"
    )
    stored(folder, lambda tensors: tensors.pop(FIRST))
    stored(folder, lambda tensors: tensors.update({FIRST: torch.ones(2, 31)}))
    with pytest.raises(CheckpointError, match=message.replace("32, 32", "32, 31")):
        load_lora(model, folder, find_base_model(other))
    first = write_model(tmp_path / "chatglm-6b", small_case(1))
    with pytest.raises(CheckpointError, match="where that layer is not there"):
        load_lora(load_model(first), folder, find_base_model(first))


def test_told_apart(folder):
    before = digest_lora(folder)
    assert digest_lora(folder) == before
    configured(folder, lora_alpha=4)
    scaled = digest_lora(folder)
    stored(folder, lambda tensors: tensors[FIRST].add_(1))
    assert len({before, scaled, digest_lora(folder)}) == 3


@pytest.mark.parametrize("grouped", [True, False])
def test_folded_into_queries_keys_and_values_of_one_tensor(grouped, tmp_path):
    case = small_case(2, multi_query_attention=grouped)
    base = find_base_model(write_model(tmp_path / "chatglm2-6b", case))
    model = load_model(base.path)
    attach_lora(model, LoraForm(2, 3, find_targets(model, "q_proj,v_proj,o_proj")))
    for _, parameter in lora_parameters(model):
        torch.nn.init.normal_(parameter, 0, 0.1)
    save_lora(model, tmp_path, "x")
    empty, rename = empty_model(base)
    files = WeightFiles(base.path)
    folding = Folding(base, tmp_path, empty, rename, files.headers)
    (name,) = (n for n in files.names if "layers.1" in n and n.endswith("query_key_value.weight"))
    ((_, fused),) = files.items([name])
    bare, folded = rename(name, fused), rename(name, folding.fold(name, fused))
    for part, weight in bare.items():
        module = part.removesuffix(".weight")
        expected = weight
        if "k_proj" not in module:
            layer = model.get_submodule(module)
            expected = (
                weight + 1.5 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            )
        torch.testing.assert_close(folded[part], expected, atol=1e-6, rtol=1e-6)
    other = name.replace("query_key_value.weight", "query_key_value.bias")
    ((_, bias),) = files.items([other])
    assert folding.fold(other, bias) is bias


def test_weights_under_other_names(folder, base, tmp_path):
    found = find_base_model(base)
    empty, rename = empty_model(found)
    headers = {f"other.{name}": h for name, h in WeightFiles(base).headers.items()}
    message = "is in no file of .* under that name; save the base with transformers'"
    with pytest.raises(CheckpointError, match=message):
        Folding(found, folder, empty, rename, headers)


def test_folded_beyond_the_precision(folder, tmp_path):
    half = write_native(tmp_path / "half", "qwen3", dtype=torch.float16)
    base = find_base_model(half)
    empty, rename = empty_model(base)
    files = WeightFiles(half)
    configured(folder, lora_alpha=1e30)
    folding = Folding(base, folder, empty, rename, files.headers)
    name = "model.layers.0.self_attn.q_proj.weight"
    ((_, weight),) = files.items([name])
    with pytest.raises(CheckpointError) as caught:
        folding.fold(name, weight)
    assert str(caught.value) == (
        f"{name} with the LoRA in {folder} folded into it is beyond float16; take another "
        "checkpoint, or a base model in a wider precision with --model"
    )
    damaged = weight.clone().fill_(float("nan"))  # that is the file's own fault, and said as such
    assert folding.fold(name, damaged).isnan().all()
