"""Folders, hub ids and `tiny`; generations told apart by config.json; every complaint."""

import json

import pytest
from fixtures.checkpoints import changed, golden_case, write_json

from ptune.base.folder import TINY_FOLDER, Generation, find_base_model, named_generation
from ptune.errors import ConfigError, ModelError

CONFIGS = {generation: golden_case(f"v{generation}")["config"] for generation in (1, 2, 3, 4)}
KINDS = dict(zip((1, 2, 3, 4), Generation, strict=False))


def folder_of(path, generation, **config):
    path.mkdir(parents=True, exist_ok=True)
    case = changed({"config": CONFIGS[generation]}, **config)
    write_json(path / "config.json", case["config"])
    return path


def refused(path, message, **said):
    with pytest.raises(ModelError, match=message) as caught:
        find_base_model(path, **said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("generation", (1, 2, 3, 4))
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


ROLE = "<|observation|>"
SECOND_CODE = 'special_tokens = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]'
THIRD_CODE = f'{SECOND_CODE} + ["<|system|>", "{ROLE}"]'
DIVIDES = "seq_idx = torch.arange(seq_len) / self.rope_ratio"
MULTIPLIES = "base = base * self.rope_ratio"
NAMELESS = {"_name_or_path": None}
FOURTH_CODE = 'class ChatGLM4Tokenizer:\n    tokens = ["[gMASK]", f"<|{role}|>"]'
UNKNOWN_SIZE = NAMELESS | {"padded_vocab_size": 100000}  # of no released model
RANKS = "IQ== 0\nIg== 1\n"
# What a folder of ChatGLM2 or 3 holds, and what it is; `model` is what it is called.
SHOWN = [
    ({"_name_or_path": "THUDM/chatglm3-6b"}, {}, 3),
    ({"_name_or_path": "THUDM/chatglm2-6b"}, {}, 2),
    ({"_name_or_path": "/models/ChatGLM-3"}, {}, 3),
    ({"_name_or_path": "/from-chatglm2/chatglm3-6b/"}, {}, 3),
    (NAMELESS, {"tokenizer_config.json": f'{{"additional_special_tokens": ["{ROLE}"]}}'}, 3),
    (NAMELESS, {"tokenizer_config.json": '{"name_or_path": "THUDM/chatglm3-6b"}'}, 3),
    (NAMELESS, {"tokenizer_config.json": '{"name_or_path": "THUDM/chatglm2-6b"}'}, 2),
    (NAMELESS, {"tokenization_chatglm.py": THIRD_CODE}, 3),
    (NAMELESS, {"tokenization_chatglm.py": SECOND_CODE + "\nraise RuntimeError('ran')"}, 2),
    (NAMELESS | {"rope_ratio": 16}, {"modeling_chatglm.py": DIVIDES}, 2),
    (NAMELESS | {"rope_ratio": 50}, {"modeling_chatglm.py": MULTIPLIES}, 3),
    (NAMELESS | {"prompt_format": "chatglm3"}, {"tokenization_chatglm.py": SECOND_CODE}, 3),
]


# The same of a folder of GLM-4; the files' contents count as much as any name.
SHOWS_GLM4 = [
    ({"_name_or_path": "THUDM/glm-4-9b-chat", "rope_ratio": 500}, {}),
    ({"_name_or_path": "/models/GLM4"}, {}),
    (NAMELESS, {"tokenizer_config.json": '{"tokenizer_class": "ChatGLM4Tokenizer"}'}),
    (
        NAMELESS,
        {"tokenizer_config.json": f'{{"tokenizer_class": "ChatGLM4Tokenizer", "x": "{ROLE}"}}'},
    ),
    (NAMELESS, {"tokenization_chatglm.py": FOURTH_CODE + "\nraise RuntimeError('ran')"}),
    (NAMELESS, {"tokenizer.model": RANKS}),
    (NAMELESS | {"padded_vocab_size": 151552}, {}),
    (NAMELESS | {"prompt_format": "glm4"}, {}),
    (
        NAMELESS | {"rope_ratio": 500},
        {"modeling_chatglm.py": MULTIPLIES, "tokenizer.model": RANKS},
    ),
]


@pytest.mark.parametrize(("settings", "files"), SHOWS_GLM4)
def test_fourth_generation(tmp_path, settings, files):
    """Whatever the folder is called."""
    folder = shown_by(tmp_path / "chatglm3-6b", UNKNOWN_SIZE | settings, files)
    assert find_base_model(folder).generation is Generation.GLM4
    assert find_base_model(folder, prompt_format="glm4").generation is Generation.GLM4
    with pytest.raises(ConfigError, match=r"chatglm3 does not go with .*, which is of glm4 by "):
        find_base_model(folder, prompt_format="chatglm3")


@pytest.mark.parametrize(
    ("content", "kinds"),
    [
        (RANKS, "glm4"),
        ("\n\x0e\n\x05<unk>", "chatglm2 or chatglm3"),
        ("version https://git-lfs.github.com/spec/v1\n", "chatglm2, chatglm3 or glm4"),
    ],
)
def test_what_the_file_of_the_tokenizer_leaves(tmp_path, content, kinds):
    folder = shown_by(tmp_path / "model", UNKNOWN_SIZE, {"tokenizer.model": content})
    if kinds == "glm4":
        assert find_base_model(folder).generation is Generation.GLM4
        return
    refused(folder, f"nothing in {folder} says whether it is of {kinds} .no name in")


def test_a_name_and_a_file_that_contradict_each_other(tmp_path):
    settings = UNKNOWN_SIZE | {"_name_or_path": "THUDM/chatglm3-6b"}
    folder = shown_by(tmp_path / "model", settings, {"tokenizer.model": RANKS})
    refused(
        folder,
        f"{folder} mixes generations: _name_or_path in config.json is of chatglm3, tokenizer.model "
        "is of glm4; download all files of one model into one folder, or say which it is",
    )
    for kind in ("chatglm3", "glm4"):
        assert find_base_model(folder, prompt_format=kind).generation.value == kind


def shown_by(folder, settings, files, config_of=2):
    folder_of(folder, config_of, **settings)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(("settings", "files", "expected"), SHOWN)
def test_second_and_third_generation(tmp_path, settings, files, expected):
    """Whatever the folder is called, and the folder that it lies in."""
    folder = shown_by(tmp_path / "chatglm3" / "chatglm2", settings, files)
    assert find_base_model(folder).generation is KINDS[expected]
    kind, other = f"chatglm{expected}", f"chatglm{5 - expected}"
    assert find_base_model(folder, prompt_format=kind).generation is KINDS[expected]
    assert find_base_model(folder, trained_format=other).generation is KINDS[expected]
    with pytest.raises(ConfigError) as caught:
        find_base_model(folder, prompt_format=other)
    assert str(caught.value).startswith(
        f"--prompt-format {other} does not go with {folder}, which is of {kind} by "
    )
    assert str(caught.value).endswith("; leave it out, or pass another model")


def test_official_folders_under_other_names(tmp_path):
    for generation in (2, 3):
        folder = folder_of(tmp_path / f"model-{generation}", generation)
        assert find_base_model(folder).generation is KINDS[generation]


# Neither tells them apart: `seq_length` 8192 is not of ChatGLM3 alone.
SILENT = [
    ({}, {}),
    ({"seq_length": 32768}, {}),
    ({"seq_length": 8192}, {"tokenizer_config.json": "{}", "tokenization_chatglm.py": "pass"}),
    ({"rope_ratio": 16}, {"modeling_chatglm.py": f"{DIVIDES} if second else {MULTIPLIES}"}),
    ({"rope_ratio": 1}, {"modeling_chatglm.py": MULTIPLIES}),
]


@pytest.mark.parametrize(("settings", "files"), SILENT)
def test_folder_that_says_neither(tmp_path, settings, files):
    folder = shown_by(tmp_path / "model", NAMELESS | settings, files)
    refused(
        folder,
        f"nothing in {folder} says whether it is of chatglm2 or chatglm3 .no name in config.json "
        "or .*; say it with --prompt-format",
    )
    for generation in (2, 3):
        said = f"chatglm{generation}"
        other = f"chatglm{5 - generation}"
        for answer in ({"prompt_format": said}, {"trained_format": said}):
            assert find_base_model(folder, **answer).generation is KINDS[generation]
        both = {"prompt_format": said, "trained_format": other}
        assert find_base_model(folder, **both).generation is KINDS[generation]
    refused(folder, "nothing in", trained_format="chatglm")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("/models/chatglm3-glm-4bit", Generation.CHATGLM3),
        ("glm-4-9b-chat", Generation.GLM4),
        ("chatglm-6b-int4", None),
        ("chatglm-4-bit", None),
    ],
)
def test_names(name, kind):
    assert named_generation(name) is kind


@pytest.mark.parametrize("name", ["chatglm3-6b", "ChatGLM3-6B-base"])
def test_the_name_of_the_folder_is_the_last_hint(tmp_path, name, monkeypatch):
    folder = folder_of(tmp_path / name, 2, _name_or_path="")
    assert find_base_model(folder).generation is Generation.CHATGLM3
    assert find_base_model(folder, prompt_format="chatglm2").generation is Generation.CHATGLM2
    monkeypatch.chdir(folder)
    assert find_base_model(".").generation is Generation.CHATGLM3
    inside = folder_of(folder / "model", 2, _name_or_path="")
    refused(inside, "nothing in .* says whether")


def test_folder_that_says_both(tmp_path):
    files = {"tokenization_chatglm.py": THIRD_CODE}
    folder = shown_by(tmp_path / "model", {"_name_or_path": "THUDM/chatglm2-6b"}, files)
    refused(
        folder,
        f"{folder} mixes generations: _name_or_path in config.json is of chatglm2, "
        "tokenization_chatglm.py is of chatglm3; download all files of one model into one folder, "
        "or say which it is with --prompt-format",
    )
    assert find_base_model(folder, prompt_format="chatglm3").generation is Generation.CHATGLM3
    files = {"modeling_chatglm.py": MULTIPLIES}
    settings = {"_name_or_path": "THUDM/chatglm2-6b-32k", "rope_ratio": 16}
    folder = shown_by(tmp_path / "other", settings, files)
    refused(folder, "is of chatglm2, rope_ratio in modeling_chatglm.py is of chatglm3 or glm4; ")


@pytest.mark.parametrize(
    ("generation", "wanted", "kinds"),
    [(1, "chatglm2", "chatglm"), (2, "chatglm", "chatglm2"), (2, "glm4", "chatglm2")],
)
def test_prompt_format_of_another_architecture(tmp_path, generation, wanted, kinds):
    folder = folder_of(tmp_path, generation)
    with pytest.raises(ConfigError, match=f"{wanted} does not go with .* is of {kinds} by "):
        find_base_model(folder, prompt_format=wanted)
    folder_of(tmp_path, generation, prompt_format=wanted)
    refused(folder, f"prompt_format '{wanted}' in .* does not go with its other fields, .* of cha")


def test_prompt_format_of_another_architecture_where_nothing_is_shown(tmp_path):
    folder = folder_of(tmp_path, 2, **NAMELESS)
    with pytest.raises(ConfigError, match=r"chatglm does not go .* of chatglm2 or chatglm3 by "):
        find_base_model(folder, prompt_format="chatglm")


def test_tokenizer_files():
    files = [kind.tokenizer_file for kind in [*Generation][:4]]
    assert files == ["ice_text.model", *["tokenizer.model"] * 3]


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


@pytest.mark.parametrize("kind", ["vit", None])
def test_not_a_chatglm(tmp_path, kind):
    folder = folder_of(tmp_path, 1, model_type=kind)
    refused(folder, f"model_type {kind!r} in .*config.json brings its own code, which")


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
