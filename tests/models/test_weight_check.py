"""What the weight files of a folder hold is what its config.json asks for, and nothing else."""

import pytest
import torch
from fixtures.checkpoints import (
    PREFIX,
    base_state,
    changed,
    prefix_state,
    small_case,
    small_ids,
    write_json,
    write_prefix,
    write_weights,
)

from ptune import load_model
from ptune.base.folder import find_base_model
from ptune.base.weights import WeightFiles
from ptune.commands.doctor.check import Status
from ptune.commands.doctor.model_folder import examine_model
from ptune.commands.merge import merge
from ptune.errors import ModelError

GENERATIONS = (1, 2, 3, 4)
AT = {1: "transformer.layers.1.", 2: "transformer.encoder.layers.1."}
AT[3] = AT[4] = AT[2]
WEIGHT = "mlp.dense_4h_to_h.weight"


def write(folder, case, state, format="safetensors"):
    folder.mkdir()
    write_json(folder / "config.json", case["config"])
    write_weights(folder, state, format)
    write_prefix(folder / "prefix", case)
    return folder


def refused(folder, message):
    """By loading, by merging, and by the doctor."""
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=message):
        merge(find_base_model(folder), folder / "prefix", folder.parent / "merged")
    assert not (folder.parent / "merged").exists()
    report = examine_model(str(folder))
    failures = [check for check in report.checks if check.status is Status.FAILURE]
    assert any(f"{check.message}; {check.mend}" == str(caught.value) for check in failures)


@pytest.mark.parametrize(("config_of", "weights_of"), [(1, 2), (2, 1), (3, 1)])
def test_config_of_one_generation_and_weights_of_another(tmp_path, config_of, weights_of):
    folder = write(tmp_path / "model", small_case(config_of), base_state(small_case(weights_of)))
    found = "ChatGLM-6B" if weights_of == 1 else "ChatGLM2, ChatGLM3 or GLM-4"
    kind = {1: "chatglm", 2: "chatglm2", 3: "chatglm3"}[config_of]
    refused(
        folder,
        f"^{folder} mixes generations: config.json is of {kind}, the weights are of {found}; "
        "download all files of one model into one folder$",
    )


def test_weights_of_no_chatglm(tmp_path):
    state = {f"model.layers.{i}.weight": torch.zeros(1) for i in range(4)}
    folder = write(tmp_path / "model", small_case(1), state)
    refused(
        folder,
        f"^the weights in {folder} are not of a ChatGLM .they begin with model.layers.0.weight, "
        "model.layers.1.weight, model.layers.2.weight.; pass the folder of a base model$",
    )


def test_prefix_checkpoint_passed_as_the_model(tmp_path):
    case = small_case(1)
    folder = write(tmp_path / "model", case, prefix_state(case))
    refused(folder, "not of a ChatGLM .they begin with transformer.prefix_encoder.embedding")


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("layers", [1, 3])
def test_other_number_of_layers(tmp_path, generation, layers):
    case = small_case(generation)
    folder = write(tmp_path / "model", case, base_state(small_case(generation, num_layers=layers)))
    file = folder / "config.json"
    refused(
        folder,
        f"num_layers 2 in {file} does not go with the weights beside it, which have {layers} "
        "layers; download all files of one model",
    )


def test_a_huge_number_of_layers_is_refused_before_any_is_built(tmp_path, monkeypatch):
    folder = write(tmp_path / "model", small_case(1, num_layers=1000), base_state(small_case(1)))
    monkeypatch.setattr("ptune.models.build.empty_model", lambda base: pytest.fail("built"))
    with pytest.raises(ModelError, match="num_layers 1000 in"):
        load_model(folder)


@pytest.mark.parametrize("generation", (2, 3))
def test_biases_that_config_denies(tmp_path, generation):
    case = small_case(generation)
    folder = write(tmp_path / "model", changed(case, add_qkv_bias=False), base_state(case))
    refused(
        folder,
        rf"2 weights in {folder} have no place in the model that its config.json describes "
        rf"\(\S+query_key_value.bias, \S+query_key_value.bias, add_qkv_bias is false\); the two",
    )


@pytest.mark.parametrize("generation", (2, 3))
def test_biases_that_config_names(tmp_path, generation):
    case = small_case(generation)
    state = {n: t for n, t in base_state(case).items() if "query_key_value.bias" not in n}
    folder = write(tmp_path / "model", case, state)
    refused(folder, r"2 weights are not in .*query_key_value.bias\); the folder is incomplete")
    config = changed(case, add_qkv_bias=False)["config"]
    write_json(folder / "config.json", config)
    load_model(folder)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize(("count", "more"), [(3, ""), (4, r" \.\.\.")])
def test_weight_without_a_place(tmp_path, generation, count, more):
    case = small_case(generation)
    extra = {f"transformer.classifier_head.{i}": torch.zeros(2) for i in range(count)}
    folder = write(tmp_path / "model", case, base_state(case) | extra)
    refused(
        folder,
        rf"{count} weights in {folder} have no place in the model that its config.json describes "
        rf"\(transformer.classifier_head.0, \S+ \S+{more}\); the two belong to different models, "
        "download both again$",
    )


@pytest.mark.parametrize("generation", GENERATIONS)
def test_what_official_files_hold_beside_weights(tmp_path, generation):
    case = small_case(generation)
    names = ["transformer.rotary_pos_emb.inv_freq"]
    if generation == 1:
        names = [f"transformer.layers.{i}.attention.rotary_emb.inv_freq" for i in range(2)]
    beside = {name: torch.ones(4, dtype=torch.float16) for name in names}
    folder = write(tmp_path / "model", case, base_state(case) | beside)
    plain = write(tmp_path / "plain", case, base_state(case))
    ids = small_ids(case, 12)[None]
    found, expected = (load_model(path)(input_ids=ids).logits for path in (folder, plain))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("generation", "name"), [(1, "transformer.rotary_pos_emb.inv_freq"), (2, "lm_head.weight")]
)
def test_what_the_files_of_another_generation_hold(tmp_path, generation, name):
    case = small_case(generation)
    folder = write(tmp_path / "model", case, base_state(case) | {name: torch.ones(4)})
    refused(folder, rf"1 weights in {folder} have no place in the model .*\({name}\)")


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool, torch.uint8])
def test_integers_in_the_place_of_numbers(tmp_path, generation, dtype):
    case, name = small_case(generation), AT[generation] + WEIGHT
    state = base_state(case)
    state[name] = torch.ones(state[name].shape, dtype=dtype)
    folder = write(tmp_path / "model", case, state, "bin")
    kind = str(dtype).removeprefix("torch.")
    refused(
        folder,
        f"{name} in {folder}/pytorch_model.bin holds {kind} but config.json asks for numbers in "
        "floating point; download all files of one model$",
    )


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("name", [WEIGHT, "input_layernorm.weight"])
def test_codes_without_scales(tmp_path, generation, name):
    case, name = small_case(generation), AT[generation] + name
    state = base_state(case)
    folder = write(tmp_path / "model", case, state | {name: state[name].to(torch.int8)})
    refused(folder, f"{name} in {folder} has no {name}_scale for its int8 codes; the folder is inc")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_scales_without_codes(tmp_path, generation):
    case, name = changed(small_case(generation), quantization_bit=8), AT[generation] + WEIGHT
    state = base_state(case)
    full = base_state(small_case(generation))
    folder = write(tmp_path / "numbers", case, state | {name: full[name]})
    refused(
        folder, f"{name}_scale in {folder} is a scale of int8 codes, but {name} holds float32; down"
    )
    del state[name]
    folder = write(tmp_path / "nothing", case, state)
    refused(folder, f"{name}_scale in {folder} is a scale of int8 codes, but {name} holds nothing;")


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("bits", [4, 8])
def test_bits_that_the_weights_do_not_have(tmp_path, generation, bits):
    case = small_case(generation)
    claimed = changed(case, quantization_bit=bits)
    folder = write(tmp_path / "plain", claimed, base_state(case))
    refused(folder, f"quantization_bit {bits} in {folder}/config.json does .* no scales")
    other = base_state(changed(case, quantization_bit=12 - bits))
    folder = write(tmp_path / "other", claimed, other)
    refused(folder, r"\.weight has shape \[.*\] in .* but config.json asks for \[")


def test_scales_of_another_type(tmp_path):
    case, name = changed(small_case(1), quantization_bit=8), AT[1] + WEIGHT + "_scale"
    state = base_state(case)
    folder = write(tmp_path / "model", case, state | {name: state[name].to(torch.int32)})
    refused(folder, f"{name} in {folder}/model.safetensors holds int32 but config.json asks for nu")


@pytest.mark.parametrize(
    ("generation", "name"),
    [
        (1, "transformer.final_layernorm.weight"),
        (2, "transformer.embedding.word_embeddings.weight"),
        (3, "transformer.encoder.layers.1.input_layernorm.weight"),
    ],
)
def test_codes_of_what_is_never_quantized(tmp_path, generation, name):
    case = changed(small_case(generation), quantization_bit=8)
    state = base_state(case)
    state[name] = torch.ones(state[name].shape, dtype=torch.int8)
    state[name + "_scale"] = torch.ones(len(state[name]))
    folder = write(tmp_path / "model", case, state)
    refused(folder, f"{name} in {folder}/model.safetensors holds int8 but config.json asks for num")


@pytest.mark.parametrize("claimed", [True, False])
def test_quantized_embeddings_that_one_side_denies(tmp_path, claimed):
    case = changed(small_case(1), quantization_bit=8, quantization_embeddings=claimed)
    state, name = base_state(case), "transformer.word_embeddings.weight"
    if not claimed:
        state[name] = torch.ones(state[name].shape, dtype=torch.int8)
        state[name + "_scale"] = torch.ones(len(state[name]))
    folder = write(tmp_path / "model", case, state)
    has = "no" if claimed else "a"
    refused(
        folder,
        f"quantization_embeddings {claimed} in {folder}/config.json does not go with {name} beside "
        f"it, which has {has} scale; download all files of one model",
    )


@pytest.mark.parametrize("generation", GENERATIONS)
def test_prefix_that_config_does_not_name(tmp_path, generation):
    case = small_case(generation)
    folder = write(tmp_path / "model", case, base_state(case) | prefix_state(case))
    refused(
        folder,
        f"{PREFIX}embedding.weight in {folder} is of a prefix but its config.json has no "
        "pre_seq_len; take both files of one merged folder",
    )
    write_json(folder / "config.json", case["config"] | case["prefix"])
    load_model(folder)


def bad(state, name, value, at=(0, 0)):
    tensor = state[name].clone()
    tensor[at if tensor.dim() > 1 else at[1]] = value
    return state | {name: tensor}


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", [WEIGHT, "input_layernorm.weight", "attention.query_key_value.bias"]
)
def test_weight_that_is_not_finite(tmp_path, generation, bits, value, name):
    case = small_case(generation)
    inner = name if generation == 1 or "mlp" in name or "norm" in name else f"self_{name}"
    name = AT[generation] + inner
    folder = write(tmp_path / "model", case, bad(base_state(case), name, value, (5, 3)))
    message = (
        f"{name} in {folder} holds NaN or infinity; the file is damaged or its training failed, "
        "download it again or take another model$"
    )
    for dtype in ("float32", "float16", "bfloat16"):
        with pytest.raises(ModelError, match=message):
            load_model(folder, dtype=dtype, quantization_bit=bits)
    with pytest.raises(ModelError, match=message):
        merge(
            find_base_model(folder),
            folder / "prefix",
            tmp_path / "out",
            quantization_bit=bits and "8",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("bits", [4, 8])
def test_scale_that_is_not_finite(tmp_path, bits):
    case, name = changed(small_case(2), quantization_bit=bits), AT[2] + WEIGHT + "_scale"
    folder = write(tmp_path / "model", case, bad(base_state(case), name, float("nan")))
    with pytest.raises(ModelError, match=f"{name} in {folder} holds NaN or infinity"):
        load_model(folder)


def test_number_that_the_precision_cannot_hold(tmp_path):
    case, name = small_case(1), AT[1] + WEIGHT
    folder = write(tmp_path / "model", case, bad(base_state(case), name, 1e6))
    load_model(folder, dtype="bfloat16")
    message = rf"{name} in {folder} has values up to 1e\+06, which float16 cannot hold; use --dtype"
    with pytest.raises(ModelError, match=message):
        load_model(folder, dtype="float16")
    message = "which float16 scales cannot hold; use --quantization-bit none"
    for bits in (4, 8):
        with pytest.raises(ModelError, match=message):
            load_model(folder, quantization_bit=bits)
    with pytest.raises(ModelError, match=message):
        merge(find_base_model(folder), folder / "prefix", tmp_path / "out", quantization_bit="8")
    merge(find_base_model(folder), folder / "prefix", tmp_path / "out")


def test_looking_at_headers_reads_no_values(tmp_path):
    case = small_case(2)
    folder = write(tmp_path / "model", case, base_state(case))
    file = folder / "model.safetensors"
    content = file.read_bytes()
    head = 8 + int.from_bytes(content[:8], "little")
    file.write_bytes(content[:head] + b"\xff" * (len(content) - head))
    report = examine_model(str(folder))
    assert report.checks[-1].name == "shapes" and report.checks[-1].status is Status.OK
    assert len(WeightFiles(folder).headers) == len(base_state(case))
