"""Tokenizers of transformers, with what prompts need of them."""

import json
import shutil

import pytest
from fixtures.native_models import FAMILIES, write_tokenizer

from ptune import load_tokenizer
from ptune.base.folder import BaseModel, Generation
from ptune.data.template_tokenizer import build_template_tokenizer
from ptune.data.tokenizer import build_tokenizer
from ptune.errors import DataError, ModelError


def build(folder, **options):
    return build_template_tokenizer(
        BaseModel(str(folder), folder, {}, Generation.NATIVE), **options
    )


@pytest.fixture(params=FAMILIES)
def tokenizer(request, tmp_path):
    write_tokenizer(tmp_path, request.param)
    return build(tmp_path)


TEXTS = ["类型#裤*版型#宽松", "  two  spaces\n\n", "🦊é\u0301", "", "user\n", "<|not_there|>"]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode_text(text)) == text


def test_no_text_becomes_a_control_token(tokenizer):
    for name in (token.content for token in tokenizer.added_tokens_decoder.values()):
        for text in (name, f"a{name}b", f" {name}\n{name}"):
            ids = tokenizer.encode_text(text)
            assert not tokenizer.control_ids.intersection(ids)
            assert tokenizer.decode(ids) == text
            # Which is what the library does with the same text.
            assert tokenizer.control_ids.intersection(tokenizer.encode(text))


ROLES = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_what_stands_around_messages_steers_whatever_it_is_called(tmp_path):
    """Some tokenizers say of their role tokens that they are not special."""
    write_tokenizer(tmp_path, "qwen3", template=ROLES)
    file = tmp_path / "tokenizer.json"
    described = json.loads(file.read_text("utf-8"))
    for name in ("<|user|>", "<|assistant|>", "<think>"):
        index = 500 + len(described["added_tokens"])
        described["added_tokens"].append(
            described["added_tokens"][0] | {"id": index, "content": name, "special": False}
        )
    file.write_text(json.dumps(described), "utf-8")
    tokenizer = build(tmp_path)
    framing = {tokenizer.convert_tokens_to_ids(name) for name in ("<|user|>", "<|assistant|>")}
    assert framing <= tokenizer.control_ids
    assert not framing.intersection(tokenizer.encode_text("a<|user|>b<|assistant|>"))
    thought = tokenizer.convert_tokens_to_ids("<think>")
    assert thought in tokenizer.encode_text("<think>")


def test_half_a_character(tokenizer):
    with pytest.raises(DataError, match=r"half a surrogate pair '\\ud83d' at character 3; leave"):
        tokenizer.encode_text("ab\ud83d")


@pytest.mark.parametrize(
    ("family", "end", "system"),
    [
        ("qwen3", "<|im_end|>", True),
        ("llama", "<|eot|>", True),  # its eos_token is another
        ("gemma2", "</turn>", False),
        ("gpt2", "<|endoftext|>", None),
    ],
)
def test_what_the_template_says(tmp_path, family, end, system):
    write_tokenizer(tmp_path, family)
    tokenizer = build(tmp_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer.end_of_answer_id) == end
    assert tokenizer.pad_token_id is not None
    if system is not None:
        assert tokenizer.has_system_role is system


def test_without_an_end(tmp_path):
    write_tokenizer(tmp_path, "gpt2", end=None)
    with pytest.raises(ModelError, match=r"has no eos_token, which ends an answer; name it in its"):
        build(tmp_path)


def test_none_at_all(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer in .*; download|could not be read"):
        build(tmp_path)


def test_more_tokens_than_the_model_has(tmp_path):
    write_tokenizer(tmp_path, "qwen3")
    base = BaseModel(str(tmp_path), tmp_path, {"vocab_size": 300}, Generation.NATIVE)
    message = r"has ids up to \d+ but vocab_size in config.json is 300; the two belong to different"
    with pytest.raises(ModelError, match=message):
        build_template_tokenizer(base)


def test_a_template_that_refuses(tmp_path):
    write_tokenizer(tmp_path, "gemma2")
    said = [{"role": "system", "content": "a"}]
    with pytest.raises(ModelError, match=r"refuses a conversation \(no system role\); leave its"):
        build(tmp_path).fill_template(said)


def test_damaged(tmp_path):
    write_tokenizer(tmp_path, "qwen3")
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text("utf-8")[:500], "utf-8")
    with pytest.raises(ModelError, match=r"tokenizer in .* could not be read \(.*\); download all"):
        build(tmp_path)


def test_digest_tells_apart(tmp_path):
    write_tokenizer(tmp_path / "a", "qwen3")
    write_tokenizer(tmp_path / "b", "mistral")
    write_tokenizer(tmp_path / "c", "llama")
    first, same, other = (build(tmp_path / name).content_digest() for name in "abc")
    assert first == same != other


def test_no_code_of_the_folder_is_run(tmp_path):
    write_tokenizer(tmp_path, "qwen3")
    (tmp_path / "tokenization_own.py").write_text("raise SystemExit('run')")
    file = tmp_path / "tokenizer_config.json"
    mapped = '{"auto_map": {"AutoTokenizer": ["tokenization_own.Own", null]}, '
    file.write_text(mapped + file.read_text("utf-8")[1:], "utf-8")
    assert build(tmp_path).encode_text("a")
    shutil.rmtree(tmp_path)


def test_one_is_shared_until_its_files_change(tmp_path):
    write_tokenizer(tmp_path, "qwen3")
    base = BaseModel(str(tmp_path), tmp_path, {}, Generation.NATIVE)
    first = build_tokenizer(base)
    assert build_tokenizer(base) is first
    write_tokenizer(tmp_path, "llama")
    assert build_tokenizer(base).content_digest() != first.content_digest()


def test_load_tokenizer(tmp_path):
    write_tokenizer(tmp_path, "qwen3")
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    own = load_tokenizer(tmp_path)
    assert own.generation is Generation.NATIVE
    assert load_tokenizer(tmp_path) is not own
