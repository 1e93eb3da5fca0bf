"""A wrong field of config.json is named with its value, its file and what it should be."""

import json
import re
from pathlib import Path

import pytest
from fixtures.checkpoints import changed, golden_case

from ptune.base.architecture import RELEASED
from ptune.base.schema import check_config, is_first, token_ids
from ptune.errors import ModelError

CONFIGS = {generation: golden_case(f"v{generation}")["config"] for generation in (1, 2, 3, 4)}
FILE = Path("/models/config.json")
DOWNLOAD = "; download config.json again"


def refused(config, message):
    with pytest.raises(ModelError) as caught:
        check_config(config, FILE)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", RELEASED)
def test_released_models(name):
    check_config(RELEASED[name], FILE)


@pytest.mark.parametrize("generation", (1, 2, 3, 4))
def test_whole_files(generation):
    config = CONFIGS[generation]
    check_config(config, FILE)
    check_config(config | {"something": [None], "architectures": 3}, FILE)
    assert is_first(config) is (generation == 1)


@pytest.mark.parametrize("generation", (1, 2, 3, 4))
def test_missing_field(generation):
    needed = {
        *("hidden_size", "num_layers", "num_attention_heads", "layernorm_epsilon"),
        *(CONFIGS[1].keys() & {"vocab_size", "max_sequence_length", "pad_token_id"}),
    }
    if generation > 1:
        needed = needed - CONFIGS[1].keys() | {"ffn_hidden_size", "kv_channels", "seq_length"}
    for name in needed:
        config = {key: value for key, value in CONFIGS[generation].items() if key != name}
        refused(config, f"{name} is missing in {FILE}{DOWNLOAD}")


WRONG = [
    (1, "num_layers", "2", '"2"', "a whole number from 1 to 1000"),
    (1, "num_layers", True, "true", "a whole number from 1 to 1000"),
    (1, "num_layers", 2.0, "2.0", "a whole number from 1 to 1000"),
    (2, "num_layers", 1001, "1001", "a whole number from 1 to 1000"),
    (2, "hidden_size", -64, "-64", "a whole number from 1 to 1048576"),
    (1, "vocab_size", 0, "0", "a whole number from 1 to 16777216"),
    (2, "seq_length", None, "null", "a whole number from 1 to 2147483647"),
    (3, "layernorm_epsilon", 0, "0", "a number from 1e-12 to 0.01"),
    (3, "layernorm_epsilon", 1.0, "1.0", "a number from 1e-12 to 0.01"),
    (2, "rope_ratio", 0.5, "0.5", "a number from 1 to 1e+06"),
    (2, "rope_ratio", None, "null", "a number from 1 to 1e+06"),
    (2, "multi_query_attention", 1, "1", "true or false"),
    (3, "add_qkv_bias", None, "null", "true or false"),
    (1, "use_cache", "true", '"true"', "true or false"),
    (1, "mask_token_id", -1, "-1", "a whole number from 0 to 16777215"),
    (1, "eos_token_id", [], "[]", "a token id or a list of them"),
    (2, "eos_token_id", [2, "3"], '[2, "3"]', "a token id or a list of them"),
    (2, "quantization_bit", 3, "3", "4, 8 or 0"),
    (1, "quantization_bit", True, "true", "4, 8 or 0"),
    (2, "pre_seq_len", -1, "-1", "a whole number from 0 to 1048576"),
    (3, "_name_or_path", 3, "3", "a text"),
    (3, "_name_or_path", ["长" * 100], '["' + "长" * 58 + " ...", "a text"),
]


@pytest.mark.parametrize(("generation", "name", "value", "shown", "expected"), WRONG)
def test_wrong_value(generation, name, value, shown, expected):
    config = CONFIGS[generation] | {name: value}
    refused(config, f"{name} {shown} in {FILE} is not {expected}{DOWNLOAD}")


@pytest.mark.parametrize(
    ("generation", "name", "value", "released"),
    [
        (1, "position_encoding_2d", False, "true"),
        (1, "tie_word_embeddings", False, "true"),
        (2, "tie_word_embeddings", True, "false"),
        (3, "tie_word_embeddings", True, "false"),
        (1, "rope_scaling", {"type": "linear", "factor": 2.0}, "null"),
        (2, "rope_scaling", {"type": "dynamic", "factor": 2.0}, "null"),
        (3, "rope_scaling", {}, "null"),
        (2, "add_bias_linear", True, "false"),
        (2, "apply_residual_connection_post_layernorm", True, "false"),
        (3, "post_layer_norm", False, "true"),
        (3, "rmsnorm", False, "true"),
        (3, "rmsnorm", 1, "true"),
        (2, "fp32_residual_connection", True, "false"),
        (2, "hidden_dropout", 0.1, "0.0"),
        (2, "attention_dropout", False, "0.0"),
    ],
)
def test_another_architecture(generation, name, value, released):
    shown = json.dumps(value)
    refused(
        CONFIGS[generation] | {name: value},
        f"{name} {shown} in {FILE} is not {released}, as in all released models; "
        "use the folder of a released model",
    )


@pytest.mark.parametrize("generation", (1, 2, 3, 4))
def test_null_stands_for_nothing(generation):
    names = ["quantization_bit", "pre_seq_len", "prefix_projection", "_name_or_path"]
    names += ["eos_token_id", "pad_token_id", "bos_token_id"] if generation > 1 else []
    check_config(CONFIGS[generation] | dict.fromkeys(names), FILE)


RELATIONS = [
    (
        *(1, {"num_attention_heads": 5}),
        "num_attention_heads 5 in {} does not divide hidden_size 64 into heads of a multiple of 4",
    ),
    (
        *(1, {"num_attention_heads": 32}),
        "num_attention_heads 32 in {} does not divide hidden_size 64 into heads of a multiple of 4",
    ),
    (
        *(2, {"multi_query_group_num": 3}),
        "multi_query_group_num 3 in {} does not divide num_attention_heads 4",
    ),
    (2, {"kv_channels": 18}, "kv_channels 18 in {} is not a multiple of 4"),
]


@pytest.mark.parametrize(("generation", "settings", "message"), RELATIONS)
def test_relations(generation, settings, message):
    refused(CONFIGS[generation] | settings, message.format(FILE) + DOWNLOAD)


def test_groups_count_only_where_they_are_used():
    settings = {"multi_query_attention": False, "multi_query_group_num": 3}
    check_config(CONFIGS[2] | settings, FILE)


@pytest.mark.parametrize(
    ("generation", "settings", "said"),
    [
        (
            1,
            {"mask_token_id": 150000},
            "mask_token_id 150000 in {} is beyond its vocab_size 130528",
        ),
        (1, {"vocab_size": 130005}, "eos_token_id 130005 in {} is beyond its vocab_size 130005"),
        (
            2,
            {"eos_token_id": [2, 99999]},
            "eos_token_id 99999 in {} is beyond its padded_vocab_size",
        ),
    ],
)
def test_ids_beyond_the_vocabulary(generation, settings, said):
    with pytest.raises(ModelError) as caught:
        check_config(CONFIGS[generation] | settings, FILE)
    assert str(caught.value).startswith(said.format(FILE))
    assert str(caught.value).endswith("different revisions, download all files of one")


def test_token_ids():
    first = token_ids(CONFIGS[1])
    assert first["mask_token_id"] == [130000] and len(first) == 5
    later = token_ids(
        CONFIGS[2] | {"eos_token_id": [2, 3], "bos_token_id": None, "mask_token_id": 1}
    )
    assert later == {"eos_token_id": [2, 3], "pad_token_id": [0]}


@pytest.mark.parametrize(
    "name", ["THUDM/chatglm2-6b-32k", "/m/chatglm3-6b-128k/", "ChatGLM2-6B-32k-int4"]
)
def test_model_for_long_texts_without_its_ratio(name):
    config = changed({"config": CONFIGS[2]}, _name_or_path=name, rope_ratio=None)["config"]
    refused(config, f"rope_ratio is missing in {FILE}, but {name} has one{DOWNLOAD}")
    check_config(config | {"rope_ratio": 16}, FILE)
    plain = config | {"_name_or_path": re.sub(r"-\d+k", "", name, flags=re.IGNORECASE)}
    check_config(plain, FILE)
