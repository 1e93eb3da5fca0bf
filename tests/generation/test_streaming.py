"""Streaming: the pieces add up to the text, unsettled text is held back, generation ends."""

import random
import threading

import pytest
import torch

import ptune
from ptune.errors import ConfigError
from ptune.generation.sampling import Sampling
from ptune.generation.streaming import max_prompt_length, stream_reply

MODEL = "tiny"


class ByteTokenizer:
    """An id is a byte; 256 is a token that is not shown."""

    def __init__(self):
        self.decoded = 0

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        self.decoded += len(ids)
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


class ScriptedModel:
    """Says the ids it was given, one after the other, in the place of `generate_one`."""

    def __init__(self, answer, error=None):
        self.answer = answer
        self.error = error
        self.said = 0

    def generate_one(self, prompt, sampling, stopped):
        for token in self.answer:
            self.said += 1
            yield token
            if stopped():
                return
        if self.error:
            raise self.error


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr("ptune.generation.streaming.generate_one", ScriptedModel.generate_one)


def endless():
    while True:
        yield ord("a")


def workers():
    return [thread for thread in threading.enumerate() if thread.name == "ptune-generate"]


def stream(answer, **kwargs):
    tokenizer = ByteTokenizer()
    return list(stream_reply(ScriptedModel(answer), tokenizer, [1, 2], Sampling(), **kwargs))


def test_no_half_character_is_shown(scripted):
    text = "好👋🏽龘 é"
    pieces = stream([*text.encode(), 256])
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces == ["好", "👋", "🏽", "龘", " é"]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"\n \n hi\n\n", ["h", "i"]),
        (b"a \n b", ["a", " \n b"]),
        (b" \n", []),
        (b"", []),
        (b"a<n", ["a", "<n"]),
        (b"a<b", ["a", "<b"]),
        ("a 👋".encode()[:-1], ["a"]),
        (b"a\xffb", ["a", "\ufffdb"]),
    ],
    ids=repr,
)
def test_what_may_still_change_is_held_back(scripted, said, shown):
    assert stream(list(said)) == shown


def test_long_answers_are_not_decoded_again_and_again(scripted):
    tokenizer, text = ByteTokenizer(), "很长的回答。 " * 100
    model = ScriptedModel(list(text.encode()))
    assert "".join(stream_reply(model, tokenizer, [1], Sampling())) == text.strip()
    assert tokenizer.decoded < 20 * model.said


def test_stop_flag_ends_the_answer(scripted):
    stop = threading.Event()
    model = ScriptedModel(endless())
    pieces = []
    for piece in stream_reply(model, ByteTokenizer(), [1], Sampling(), stop):
        pieces.append(piece)
        stop.set()
    assert "".join(pieces) == "a" * model.said
    assert not workers()


def test_closing_ends_the_worker(scripted):
    pieces = stream_reply(ScriptedModel(endless()), ByteTokenizer(), [1], Sampling())
    next(pieces)
    assert workers()
    pieces.close()
    assert not workers()


def test_error_of_the_worker_surfaces_after_what_was_said(scripted):
    model = ScriptedModel(list(b"ab"), RuntimeError("card fell off"))
    pieces = []
    with pytest.raises(RuntimeError, match="card fell off"):
        pieces.extend(stream_reply(model, ByteTokenizer(), [1], Sampling()))
    assert not workers()


def test_max_prompt_length():
    assert max_prompt_length(2048, 512) == 1536
    with pytest.raises(ConfigError, match=r"max_new_tokens 4096 leaves 0 .* use 1024 or less"):
        max_prompt_length(2048, 4096)


@pytest.fixture(scope="module")
def tokenizer():
    return ptune.load_tokenizer(MODEL)


def test_pieces_join_to_the_greedy_answer(tokenizer):
    model = ptune.load_model(MODEL)
    ids = tokenizer("你好")["input_ids"]
    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)
    answer = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()
    pieces = list(stream_reply(model, tokenizer, ids, Sampling(24)))
    assert "".join(pieces) == answer
    assert len(pieces) > 1


def test_pieces_join_to_the_text_of_any_ids(scripted, tokenizer):
    rng, size = random.Random(0), tokenizer.sp_model.get_piece_size()
    pieces = {tokenizer.sp_model.id_to_piece(i): i for i in range(size)}
    tricky = [pieces[p] for p in ("▁", "<n>", "<", "n", ">", "|", "<|tab|>") if p in pieces]
    tricky += [i for piece, i in pieces.items() if piece.startswith("<0x")]
    tricky += [tokenizer.eos_token_id, tokenizer.vocab_size + 1]
    for _ in range(200):
        anything = [rng.randrange(size) for _ in range(9)]
        ids = [rng.choice([*anything, rng.choice(tricky)]) for _ in range(30)] + anything
        ids += tokenizer.encode_text("。")  # so that the end is no half character
        streamed = "".join(stream_reply(ScriptedModel(ids), tokenizer, [1], Sampling()))
        assert streamed == tokenizer.decode(ids, skip_special_tokens=True).strip()
