"""SentencePiece's pieces of a text, and those that ChatGLM-6B has for whitespace."""

from __future__ import annotations

import re
from typing import Any

from sentencepiece import SentencePieceProcessor

from ptune.data.encodable import check_encodable

_MAX_BLANKS = 80  # the longest run of spaces that ChatGLM-6B has a token for
_BLANKS = re.compile(rf" {{2,{_MAX_BLANKS}}}")
_BLANK_TOKEN = re.compile(r"<\|blank_([2-9]|[1-7]\d|80)\|>")


def encode_pieces(model: SentencePieceProcessor, text: str, kind: type) -> list[Any]:
    """Split a text into pieces.

    Args:
        model: of the tokenizer.
        text: whatever it says.
        kind: int for ids, str for the pieces themselves.

    Raises:
        DataError: it holds half a surrogate pair, which no encoding has.
    """
    try:
        return list(model.encode(text, out_type=kind))
    except RuntimeError:  # in words of the binding to C++
        check_encodable(text)
        raise


def keep_whitespace(text: str) -> str:
    """Write newlines, tabs and runs of spaces as the pieces that ChatGLM-6B has for them."""
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    return _BLANKS.sub(lambda match: f"<|blank_{len(match.group())}|>", text)


def restore_whitespace(text: str) -> str:
    """Turn these pieces back into whitespace."""
    text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
    return _BLANK_TOKEN.sub(lambda match: " " * int(match.group(1)), text)
