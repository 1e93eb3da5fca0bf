"""Pieces of texts, whitespace, and what is no text."""

import pytest

from ptune.data.pieces import keep_whitespace, restore_whitespace
from ptune.errors import DataError


def test_whitespace_there_and_back():
    text = "a  b\n\tc" + " " * 81 + "d"
    kept = keep_whitespace(text)
    assert kept == "a<|blank_2|>b<n><|tab|>c<|blank_80|> d"
    assert restore_whitespace(kept) == text
    assert restore_whitespace("<|blank_1|><|blank_81|>") == "<|blank_1|><|blank_81|>"


@pytest.mark.parametrize("generation", [1, 2, 3])
@pytest.mark.parametrize("text", ["a\ud800", ["x", "a\ud800"]])
def test_text_with_half_a_surrogate_pair(generation, text, toy_tokenizer):
    tokenizer = toy_tokenizer(generation)
    message = (
        r"^the text to encode: expected text, found half a surrogate pair '\\ud800' at character "
        "2; leave it out$"
    )
    for encode in (tokenizer, tokenizer.encode, lambda text: tokenizer("x", text)):
        with pytest.raises(DataError, match=message):
            encode(text if encode is tokenizer else "a\ud800")
    for encode in (tokenizer.tokenize, tokenizer.encode_text):
        with pytest.raises(DataError, match=message):
            encode("a\ud800")


def test_other_mistakes_stay_what_they_are(toy_tokenizer):
    with pytest.raises((RuntimeError, TypeError)):
        toy_tokenizer(2).encode_text(3)
