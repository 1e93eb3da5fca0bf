"""GLM-4's tokenizer: byte-level BPE by ranks, which tiktoken merges.

Re-implemented from `tokenization_chatglm.py` beside the weights of THUDM/glm-4-9b-chat: the same
ids and the same decoded text, but for blanks that the old library puts around control tokens.
`encode` is faithful to it, control tokens written out in a text included; `encode_text` never gives
one.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tiktoken
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ptune.base.folder import Generation
from ptune.base.tokenizer_file import TokenizerFile
from ptune.data.encodable import check_encodable
from ptune.data.model_tokenizer import ModelTokenizer
from ptune.errors import DataError, ModelError

_END = "<|endoftext|>"
# Their ids follow the ranks, in this order.
CONTROLS = [_END, "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
CONTROLS += ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
CONTROLS += ["<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"]
_SPLIT = re.compile(f"({'|'.join(map(re.escape, CONTROLS))})")

# Where a text may be cut before its parts are merged: contractions, words, numbers of up to three
# digits, punctuation, line ends, blanks.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MAX_BLANKS = 100_000  # in a row: of a million, tiktoken's regex, which looks ahead, overflows
_BLANKS = re.compile(r"\s+")

_SEEN = str.maketrans({" ": "\u2581", "\n": "\\n", "\r": "\\r", "\t": "\\t"})

# Bytes as characters that can be seen, as GPT-2 and others have them.
_SHOWN: dict[int, str] = bytes_to_unicode()
_BYTES = {character: byte for byte, character in _SHOWN.items()}


class ChatGLM4Tokenizer(ModelTokenizer):
    """GLM-4-9B: `[gMASK] <sop> text`; a token is bytes, which need not be whole characters."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    generations = (Generation.GLM4,)
    file_kind = TokenizerFile.RANKS

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        # Before the base class, whose constructor already asks for the vocabulary.
        self._ranks = read_ranks(Path(vocab_file))
        self._tokens = list(self._ranks)
        self._commands = {token: len(self._tokens) + i for i, token in enumerate(CONTROLS)}
        self._encoding = tiktoken.Encoding(
            "glm4", pat_str=_PIECES, mergeable_ranks=self._ranks, special_tokens={}
        )
        kwargs = {"eos_token": _END, "pad_token": _END, **kwargs}
        kwargs.setdefault("extra_special_tokens", CONTROLS[1:])
        super().__init__(vocab_file, **kwargs)

    @property
    def generation(self) -> Generation:
        """Whose prompt the tokenizer writes."""
        return Generation.GLM4

    @property
    def end_of_answer_id(self) -> int:
        """Id of `<|user|>`, with which an answer ends in a chat."""
        return self.get_command("<|user|>")

    @property
    def vocab_size(self) -> int:
        """Ranks and the control tokens after them."""
        return len(self._tokens) + len(CONTROLS)

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id, control tokens included."""
        return {_shown(token): i for i, token in enumerate(self._tokens)} | self._commands

    def get_command(self, token: str) -> int:
        """Id of a control token that no text contains, such as `<|user|>`.

        Raises:
            ValueError: there is none of that name.
        """
        if token not in self._commands:
            raise ValueError(f"{token!r} is no control token")
        return self._commands[token]

    def encode_text(self, text: str) -> list[int]:
        """Turn text into ids, whatever it says: no control token ever comes out.

        Raises:
            DataError: it holds half a surrogate pair, or more blanks in a row than can be encoded.
        """
        check_encodable(text)
        if len(text) > _MAX_BLANKS:
            longest = max((m.end() - m.start() for m in _BLANKS.finditer(text)), default=0)
            if longest > _MAX_BLANKS:
                raise DataError(
                    f"the text to encode has {longest:,} blanks in a row, and the tokenizer of "
                    f"GLM-4 takes {_MAX_BLANKS:,} at most; leave some out"
                )
        ids: list[int] = self._encoding.encode_ordinary(text)
        return ids

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Split text into tokens as the original does, control tokens written out included."""
        tokens: list[str] = []
        for part in _SPLIT.split(text):
            if part in self._commands:
                tokens.append(part)
            elif part:
                tokens.extend(_shown(self._tokens[i]) for i in self.encode_text(part))
        return tokens

    def token_bytes(self, token_id: int) -> bytes:
        """What stands in a text for a token; a control token is spelt out."""
        if 0 <= token_id < len(self._tokens):
            return self._tokens[token_id]
        return self._convert_id_to_token(token_id).encode()

    def show_token(self, token_id: int) -> str:
        r"""A token's text; blanks as SentencePiece shows them, parts of characters as `\xe4`."""
        text = self.token_bytes(token_id).decode("utf-8", errors="backslashreplace")
        return text.translate(_SEEN)

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Join tokens to text; half a character becomes U+FFFD."""
        return _text(
            (token.encode(), True)
            if token in self._commands
            else (bytes(_BYTES[character] for character in token), False)
            for token in tokens
        )

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`[gMASK] <sop> prompt`, and with an answer `answer <|endoftext|>` after it."""
        ids = [self.get_command("[gMASK]"), self.get_command("<sop>"), *token_ids_0]
        if token_ids_1 is not None:
            ids += [*token_ids_1, self.eos_token_id]
        return ids

    def _convert_token_to_id(self, token: str) -> int | None:
        if token in self._commands:
            return self._commands[token]
        if not all(character in _BYTES for character in token):
            return None
        return self._ranks.get(bytes(_BYTES[character] for character in token))

    def _convert_id_to_token(self, index: int) -> str:
        if 0 <= index < len(self._tokens):
            return _shown(self._tokens[index])
        place = index - len(self._tokens)
        return CONTROLS[place] if 0 <= place < len(CONTROLS) else ""

    def _decode(
        self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs: Any
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        end = len(self._tokens)
        # The head is wider than the vocabulary: ids beyond it stand for nothing.
        return _text((self.token_bytes(i), i >= end) for i in ids if i not in skipped)


def read_ranks(file: Path) -> dict[bytes, int]:
    """Read a rank file: a line for each token, in base64, and its rank.

    Returns:
        Every token's rank, which is its id, in order.

    Raises:
        ModelError: a line is something else, or tokens are missing.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        parts = line.split()
        try:
            token, rank = base64.b64decode(parts[0], validate=True), int(parts[1])
        except (IndexError, ValueError, binascii.Error) as error:
            raise _damaged(file, f"line {number} is no token with its rank") from error
        if rank != len(ranks) or token in ranks or len(parts) > 2 or not token:
            raise _damaged(file, f"line {number} is no token of its own with rank {len(ranks)}")
        ranks[token] = rank
    if absent := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise _damaged(file, f"it has no token for byte {absent[0]}")
    if spelt := [token for token in CONTROLS if token.encode() in ranks]:
        raise _damaged(file, f"a token of text reads {spelt[0]}")
    return ranks


def _damaged(file: Path, reason: str) -> ModelError:
    return ModelError(
        f"{file} ({file.stat().st_size:,} bytes) is no rank file of GLM-4 ({reason}), perhaps "
        "truncated or a Git LFS pointer; download it again"
    )


def _shown(token: bytes) -> str:
    return "".join(_SHOWN[byte] for byte in token)


def _text(parts: Iterable[tuple[bytes, bool]]) -> str:
    """Join tokens' bytes; characters do not reach over those that stand alone."""
    text, run = "", b""
    for part, alone in parts:
        if alone:
            text += run.decode("utf-8", errors="replace") + part.decode()
            run = b""
        else:
            run += part
    return text + run.decode("utf-8", errors="replace")
