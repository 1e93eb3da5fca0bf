"""config.json of models that transformers has itself."""

import json

import pytest

from ptune.base.folder import Generation, find_base_model
from ptune.base.native import native_context
from ptune.errors import ConfigError, ModelError

QWEN = {"model_type": "qwen2", "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 300}


def folder_with(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


def test_found(tmp_path):
    base = find_base_model(folder_with(tmp_path, QWEN))
    assert base.generation is Generation.NATIVE
    assert find_base_model(tmp_path, prompt_format="chat_template") == base


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "vit"}, r"'vit' in .*config\.json is neither ChatGLM nor a causal"),
        ({}, r"model_type None in .* is neither ChatGLM nor .*a newer transformers"),
        ({"model_type": ["qwen2"]}, r"model_type \['qwen2'\] in .* is neither"),
        (
            {"model_type": "baichuan", "auto_map": {"AutoModel": "x.py"}},
            r"'baichuan' in .* brings its own code, which ptune never runs",
        ),
        (
            QWEN | {"quantization_config": {"quant_method": "gptq"}},
            r"quantization_config 'gptq' in .*; pass the folder of the half-precision model",
        ),
        ({"model_type": "gemma3"}, r"'gemma3' in .* is of more than text"),
        (
            QWEN | {"hidden_size": "wide"},
            r"config\.json is refused by transformers \(.*hidden",
        ),
    ],
)
def test_refused(tmp_path, config, message):
    with pytest.raises(ModelError, match=message):
        find_base_model(folder_with(tmp_path, config))


def test_the_prompt_of_another_model(tmp_path):
    with pytest.raises(ConfigError, match=r"--prompt-format chatglm2 does not go with"):
        find_base_model(folder_with(tmp_path, QWEN), prompt_format="chatglm2")


def test_context():
    assert native_context({"max_position_embeddings": 4096}) == 4096
    assert native_context({"n_positions": 1024, "n_ctx": 512}) == 1024
    assert native_context({"max_position_embeddings": "long"}) is None
    assert native_context({}) is None
