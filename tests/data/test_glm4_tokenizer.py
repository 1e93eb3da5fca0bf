"""GLM-4's tokenizer: the original's ids, characters in halves, texts and files that are refused.

`golden/glm4-tokenizer.json` holds what the official `tokenization_chatglm.py` of glm-4-9b-chat gave
with tiktoken 0.14 and transformers 4.44 for `golden/glm4.model`: ids of texts as messages have them
(`ids`) and of the tokenizer's own `encode` (`ids_encode`), decoded text, ids decoded in parts
(`halves`), and prompts (`chats`: role, metadata, content).
"""

import json
import pickle
import time

import pytest
from fixtures.checkpoints import GOLDEN

from ptune.base.folder import Generation
from ptune.data.glm4_tokenizer import CONTROLS, ChatGLM4Tokenizer, read_ranks
from ptune.data.messages import Message
from ptune.data.prompt import WHOLE, Conversation, render
from ptune.errors import DataError, ModelError
from ptune.generation.streaming import TextStream

RANKS = GOLDEN / "glm4.model"
EXPECTED = json.loads((GOLDEN / "glm4-tokenizer.json").read_text(encoding="utf-8"))
EMOJI = "你好😀👍🏽, 한국어"


@pytest.fixture(scope="module")
def tokenizer():
    return ChatGLM4Tokenizer(str(RANKS))


class TestOriginal:
    @pytest.mark.parametrize("case", EXPECTED["texts"], ids=lambda case: ascii(case["text"])[:30])
    def test_texts(self, tokenizer, case):
        text = case["text"]
        assert tokenizer.encode_text(text) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["decoded"] == text
        plain = tokenizer.encode(text, add_special_tokens=False)
        assert plain == case["ids_encode"]
        marks = [tokenizer.get_command("[gMASK]"), tokenizer.get_command("<sop>")]
        assert tokenizer.encode(text) == [*marks, *plain]

    def test_parts_of_characters(self, tokenizer):
        assert len(EXPECTED["halves"]) > 20
        for case in EXPECTED["halves"]:
            assert tokenizer.decode(case["ids"]) == case["decoded"]
        assert any("\ufffd" in case["decoded"] for case in EXPECTED["halves"])

    def test_control_tokens(self, tokenizer):
        assert list(EXPECTED["commands"]) == CONTROLS
        for token, token_id in EXPECTED["commands"].items():
            assert tokenizer.get_command(token) == token_id
            assert tokenizer.convert_tokens_to_ids(token) == token_id
        with pytest.raises(ValueError, match="'sop' is no control token"):
            tokenizer.get_command("sop")

    def test_prompts(self, tokenizer):
        for case in EXPECTED["chats"]:
            said = [
                Message(role, content, metadata) for role, metadata, content in case["messages"]
            ]
            found = render(tokenizer, Generation.GLM4, Conversation(tuple(said)), WHOLE)
            assert found.input_ids == case["ids"]


def test_a_stream_never_shows_half_a_character(tokenizer):
    stream, shown = TextStream(tokenizer), ""
    ids = tokenizer.encode_text(EMOJI)
    assert any("\ufffd" in tokenizer.decode(ids[:k]) for k in range(len(ids)))
    for token_id in ids:
        shown += stream.push(token_id)
        assert EMOJI.startswith(shown)
    assert shown + stream.finish() == EMOJI


def test_bytes_of_tokens(tokenizer):
    ids = tokenizer.encode_text(EMOJI)
    assert b"".join(map(tokenizer.token_bytes, ids)) == EMOJI.encode()
    assert tokenizer.token_bytes(tokenizer.get_command("<|user|>")) == b"<|user|>"


def test_tokens_as_people_see_them(tokenizer):
    ids = [*tokenizer.encode_text("类型 the\n"), tokenizer.get_command("<|user|>")]
    assert "".join(map(tokenizer.show_token, ids)) == "类型▁the\\n<|user|>"
    half = tokenizer.encode_text("😀")[0]
    assert tokenizer.show_token(half).startswith("\\xf0")


def test_control_tokens_part_characters(tokenizer):
    half = tokenizer.encode_text("😀")[:1]
    user = tokenizer.get_command("<|user|>")
    text = tokenizer.decode([*half, user, *half])
    assert text == "\ufffd<|user|>\ufffd"
    assert tokenizer.decode([user, *tokenizer.encode_text("你好")]) == "<|user|>你好"


def test_long_texts(tokenizer):
    start = time.monotonic()
    most = " \t\u3000\n" * 25_000
    for text in ("a" * 200_000, "中" * 200_000, " a" * 100_000, f"a{most}b", " " * 100_000 + "b"):
        assert tokenizer.decode(tokenizer.encode_text(text)) == text
    assert time.monotonic() - start < 20


def test_more_blanks_than_can_be_encoded(tokenizer):
    with pytest.raises(DataError) as caught:
        tokenizer.encode_text("a" + " " * 3_000_000 + "b")
    assert str(caught.value) == (
        "the text to encode has 3,000,000 blanks in a row, and the tokenizer of GLM-4 takes "
        "100,000 at most; leave some out"
    )


def test_half_a_surrogate_pair(tokenizer):
    with pytest.raises(DataError, match=r"half a surrogate pair '\\ud83d' .*; leave it out$"):
        tokenizer.encode_text("a\ud83d")


def test_pickled_whole(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode_text(EMOJI) == tokenizer.encode_text(EMOJI)


LINES = RANKS.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"".join(LINES)[:-9], "line 800 is no token with its rank"),
        (b"".join([*LINES[:300], b"!!! 300\n"]), "line 301 is no token with its rank"),
        (b"".join([*LINES[:300], b"QUJD\n"]), "line 301 is no token with its rank"),
        (b"".join([*LINES[:300], LINES[301]]), "line 301 is no token of its own with rank 300"),
        (b"".join([*LINES[:300], b"QQ== 300\n"]), "line 301 is no token of its own with rank 300"),
        (b"".join(LINES[:200]), "it has no token for byte 200"),
        (b"".join([*LINES, b"PHNvcD4= 800\n"]), "a token of text reads <sop>"),
        (b"", "it has no token for byte 0"),
    ],
)
def test_damaged(tmp_path, content, reason):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_ranks(file)
    assert str(caught.value) == (
        f"{file} ({len(content):,} bytes) is no rank file of GLM-4 ({reason}), perhaps truncated "
        "or a Git LFS pointer; download it again"
    )
