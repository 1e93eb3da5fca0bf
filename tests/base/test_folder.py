"""Folders, hub ids and `tiny`; generations told apart by config.json; every complaint."""

import json

import pytest
from fixtures.checkpoints import changed, golden_case, write_json

from ptune.base.folder import TINY_FOLDER, Generation, find_base_model
from ptune.errors import ModelError

CONFIGS = {generation: golden_case(f"v{generation}")["config"] for generation in (1, 2, 3)}
KINDS = {1: Generation.CHATGLM, 2: Generation.CHATGLM2, 3: Generation.CHATGLM3}


def folder_of(path, generation, **config):
    path.mkdir(exist_ok=True)
    case = changed({"config": CONFIGS[generation]}, **config)
    write_json(path / "config.json", case["config"])
    return path


def refused(path, message):
    with pytest.raises(ModelError, match=message) as caught:
        find_base_model(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("generation", (1, 2, 3))
def test_folder(tmp_path, generation):
    base = find_base_model(folder_of(tmp_path, generation))
    assert base.path == tmp_path and base.name == str(tmp_path)
    assert base.generation is KINDS[generation]
    assert base.config == CONFIGS[generation]


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_of(tmp_path / "glm", 1)
    base = find_base_model("~/glm")
    assert base.path == tmp_path / "glm" and base.name == "~/glm"


def test_tiny_is_built_in(tmp_path, monkeypatch, tiny_folder):
    monkeypatch.chdir(tmp_path)
    base = find_base_model("tiny")
    assert base.path == TINY_FOLDER == tiny_folder
    assert base.generation is Generation.CHATGLM


@pytest.mark.parametrize(
    ("settings", "files", "expected"),
    [
        ({"_name_or_path": "THUDM/chatglm3-6b"}, {}, 3),
        ({"_name_or_path": "THUDM/chatglm2-6b"}, {}, 2),
        ({"_name_or_path": "/models/ChatGLM-3"}, {}, 3),
        ({"_name_or_path": None, "seq_length": 32768}, {}, 2),
        ({"_name_or_path": None, "seq_length": 8192}, {}, 3),
        ({}, {"tokenizer_config.json": '{"additional_special_tokens": ["<|observation|>"]}'}, 3),
        ({"_name_or_path": ""}, {"tokenizer_config.json": '{"name_or_path": "chatglm3-6b"}'}, 3),
        ({"_name_or_path": ""}, {"tokenization_chatglm.py": 'x = ["<|observation|>"]'}, 3),
        ({"_name_or_path": ""}, {"tokenization_chatglm.py": "raise RuntimeError('ran')"}, 2),
    ],
)
def test_second_and_third_generation(tmp_path, settings, files, expected):
    folder = folder_of(tmp_path / "model", 2, **settings)
    for name, text in files.items():
        (folder / name).write_text(text)
    assert find_base_model(folder).generation is KINDS[expected]


@pytest.mark.parametrize("name", ["chatglm3-6b", "ChatGLM3-6B-base"])
def test_the_name_of_the_folder_is_a_hint(tmp_path, name):
    folder = folder_of(tmp_path / name, 2, _name_or_path="")
    assert find_base_model(folder).generation is Generation.CHATGLM3


def test_tokenizer_files():
    files = [kind.tokenizer_file for kind in Generation]
    assert files == ["ice_text.model", "tokenizer.model", "tokenizer.model"]


@pytest.mark.parametrize(
    ("generation", "other", "kind"),
    [
        (1, "tokenizer.model", "chatglm"),
        (2, "ice_text.model", "chatglm2"),
        (3, "ice_text.model", "chatglm3"),
    ],
)
def test_tokenizer_of_another_generation(tmp_path, generation, other, kind):
    folder = folder_of(tmp_path, generation)
    (folder / other).write_bytes(b"")
    refused(folder, f"mixes generations: config.json is of {kind}, {other} is not its tokenizer;")
    (folder / KINDS[generation].tokenizer_file).write_bytes(b"")
    assert find_base_model(folder).generation is KINDS[generation]


def test_old_vocabulary(tmp_path):
    folder = folder_of(tmp_path, 1, vocab_size=150528)
    refused(folder, "vocab_size 150528 in .*config.json is the ChatGLM-6B of before April 2023; ")


@pytest.mark.parametrize("kind", ["llama", None])
def test_not_a_chatglm(tmp_path, kind):
    folder = folder_of(tmp_path, 1, model_type=kind)
    refused(folder, f"model_type {kind!r} in .*config.json is not ChatGLM; ptune tunes ChatGLM-6B,")


def test_neither_generation(tmp_path):
    folder = folder_of(tmp_path, 1, inner_hidden_size=None)
    refused(folder, "neither inner_hidden_size .* nor padded_vocab_size .*download it again")


def test_no_config(tmp_path):
    refused(tmp_path, "no config.json in .* .found nothing.; pass the folder of a base model")
    (tmp_path / "README.md").write_text("")
    refused(tmp_path, "found README.md")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"version https://git-lfs"])
def test_config_that_is_not_json(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    refused(tmp_path, "config.json is not JSON .*; download it again")


def test_config_that_is_no_object(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps([1]))
    refused(tmp_path, "config.json holds no JSON object; download it again")


def test_file_in_place_of_a_folder(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(b"")
    refused(file, "pytorch_model.bin is a file, not a folder; pass the folder that holds it")


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "a/b/c", ""])
def test_neither_folder_nor_hub_id(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if name:
        refused(
            name, f"model {name} is neither a folder nor a hub id such as THUDM/chatglm-6b; pass"
        )


class TestHub:
    @pytest.fixture
    def asked(self, monkeypatch, tmp_path):
        """Answer from here in place of the hub; holds what was asked."""
        calls = []

        def answer(error):
            def snapshot_download(name, **kwargs):
                calls.append((name, kwargs))
                if error is not None:
                    raise error
                return str(folder_of(tmp_path / "snapshot", 2))

            monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
            return calls

        monkeypatch.chdir(tmp_path)
        return answer

    def test_download(self, asked, tmp_path):
        calls = asked(None)
        base = find_base_model("THUDM/chatglm2-6b")
        assert base.name == "THUDM/chatglm2-6b" and base.path == tmp_path / "snapshot"
        assert [name for name, _ in calls] == ["THUDM/chatglm2-6b"] * 2
        small, weights = (kwargs["allow_patterns"] for _, kwargs in calls)
        assert "*.json" in small and "*.bin" not in small
        assert weights == ["*.safetensors", "*.bin"]

    def test_without_weights(self, asked):
        calls = asked(None)
        find_base_model("THUDM/chatglm2-6b", weights=False)
        ((_, kwargs),) = calls
        assert not {"*.safetensors", "*.bin"} & set(kwargs["allow_patterns"])

    @pytest.mark.parametrize(
        ("indices", "wanted"),
        [
            (["pytorch_model.bin.index.json"], "*.bin"),
            (["pytorch_model.bin.index.json", "model.safetensors.index.json"], "*.safetensors"),
        ],
    )
    def test_one_format_is_enough(self, asked, tmp_path, indices, wanted):
        calls = asked(None)
        folder_of(tmp_path / "snapshot", 2)
        for name in indices:
            (tmp_path / "snapshot" / name).write_text("{}")
        find_base_model("THUDM/chatglm2-6b")
        assert calls[-1][1]["allow_patterns"] == [wanted]

    @pytest.mark.parametrize(
        "kind", ["offline", "not found", "network", "invalid", "silent", "http"]
    )
    def test_failure(self, asked, kind):
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        class ProxyError(Exception):
            """As of the HTTP library, which huggingface_hub lets through."""

        error = {
            "offline": LocalEntryNotFoundError("Cannot find an appropriate snapshot\nmore"),
            "not found": FileNotFoundError("no such repository"),
            "network": ConnectionError("Name or service not known"),
            "invalid": HFValidationError("Repo id must be in the form"),
            "silent": OSError(),
            "http": ProxyError("403 Forbidden"),
        }[kind]
        asked(error)
        reason = str(error).splitlines()[0] if str(error) else "OSError"
        refused(
            "someone/glm",
            r"model someone/glm is no folder here and could not be fetched from the hub "
            rf"\({reason}\); pass a folder with `--model /path/to/glm`, or try .* `--model tiny`",
        )
