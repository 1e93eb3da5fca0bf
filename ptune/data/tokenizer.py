"""The tokenizers of the generations: which one a folder has, and the two of SentencePiece.

Re-implemented from `tokenization_chatglm.py` beside the weights of THUDM/chatglm-6b,
THUDM/chatglm2-6b and THUDM/chatglm3-6b: the same ids and the same decoded text.  `encode` is
faithful to them, control tokens written out in a text included; `encode_text` never gives one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizer

from ptune.base.folder import BaseModel, Generation, find_base_model
from ptune.base.tokenizer_file import TokenizerFile
from ptune.data.glm4_tokenizer import ChatGLM4Tokenizer
from ptune.data.model_tokenizer import ModelTokenizer
from ptune.data.pieces import encode_pieces, keep_whitespace, restore_whitespace
from ptune.data.template_tokenizer import build_template_tokenizer, shared_template_tokenizer

_COMMANDS = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]
_ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
# How SentencePiece writes a byte that is no character, and a blank.
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_BLANK = "\u2581"


def load_tokenizer(path: str | Path, prompt_format: str | None = None) -> PreTrainedTokenizer:
    """Load the tokenizer of a base model.

    Args:
        path: a folder, a hub id or `tiny`.
        prompt_format: `chatglm`, `chatglm2`, `chatglm3` or `glm4`, where the folder does not say
            which it is of.

    Raises:
        ModelError: no such model, or its tokenizer file is missing or damaged.
        ConfigError: the folder shows another generation than `prompt_format`.
    """
    base = find_base_model(path, weights=False, prompt_format=prompt_format)
    if base.generation is Generation.NATIVE:  # the caller's own, who may change it
        return build_template_tokenizer(base)
    return build_tokenizer(base)


def build_tokenizer(base: BaseModel, **options: Any) -> PreTrainedTokenizer:
    """Load the tokenizer of a base model that was found already.

    Of a model that transformers has itself, one without options is shared: it is not to be changed.

    Raises:
        ModelError: its file is missing or damaged, or config.json names other ids than it has.
    """
    if base.generation is Generation.NATIVE:
        if options:
            return build_template_tokenizer(base, **options)
        return shared_template_tokenizer(base)
    kinds: tuple[type[ModelTokenizer], ...] = (
        ChatGLMTokenizer,
        ChatGLM2Tokenizer,
        ChatGLM4Tokenizer,
    )
    kind = next(kind for kind in kinds if base.generation in kind.generations)
    return kind.build(base, options)


class _SentencePieceTokenizer(ModelTokenizer):
    """What both of them share: a SentencePiece model behind the library's interface."""

    file_kind = TokenizerFile.SENTENCEPIECE

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        # Before the base class, whose constructor already asks for the vocabulary.
        self.sp_model = SentencePieceProcessor(model_file=vocab_file)
        super().__init__(vocab_file, **kwargs)

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        size = self.sp_model.get_piece_size()
        return {self.sp_model.id_to_piece(i): i for i in range(size)}

    def encode_text(self, text: str) -> list[int]:
        """Turn text into ids, whatever it says: no control token ever comes out."""
        return encode_pieces(self.sp_model, text, int)

    def token_bytes(self, token_id: int) -> bytes:
        """What stands in a text for a token, its leading blank included."""
        piece: str = self.convert_ids_to_tokens(token_id)
        if byte := _BYTE.fullmatch(piece):
            return bytes.fromhex(byte[1])
        text: str = self.decode([token_id])
        if piece.startswith(_BLANK) and not text.startswith(" "):
            text = f" {text}"
        return text.encode()


class ChatGLMTokenizer(_SentencePieceTokenizer):
    """ChatGLM-6B: `text [gMASK] <sop>`, whitespace kept by tokens of its own."""

    vocab_files_names = {"vocab_file": "ice_text.model"}
    generations = (Generation.CHATGLM,)
    gmask_token = "[gMASK]"
    end_token = "</s>"

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        kwargs = {
            "bos_token": "<sop>",
            "eos_token": "<eop>",
            "mask_token": "[MASK]",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "extra_special_tokens": [self.gmask_token, self.end_token],
            **kwargs,
        }
        # Written out in a text, these become control tokens and lose the whitespace around them.
        specials = [kwargs[f"{name}_token"] for name in ("bos", "eos", "mask", "pad", "unk")]
        self._specials = set(specials)
        self._split = re.compile(rf"\s*({'|'.join(map(re.escape, specials))})\s*")
        super().__init__(vocab_file, **kwargs)

    @property
    def generation(self) -> Generation:
        """Whose prompt the tokenizer writes."""
        return Generation.CHATGLM

    @property
    def vocab_size(self) -> int:
        """Number of SentencePiece tokens."""
        return int(self.sp_model.get_piece_size())

    @property
    def gmask_token_id(self) -> int:
        """Id of `[gMASK]`, which marks where the answer belongs."""
        return int(self.sp_model.piece_to_id(self.gmask_token))

    @property
    def end_token_id(self) -> int:
        """Id of `</s>`."""
        return int(self.sp_model.piece_to_id(self.end_token))

    def encode_text(self, text: str) -> list[int]:
        """Turn text into ids, whatever it says: no control token ever comes out."""
        return super().encode_text(keep_whitespace(text))

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Split text into tokens as the original does, control tokens written out included."""
        tokens: list[str] = []
        for part in self._split.split(text):
            if part in self._specials:
                tokens.append(part)
            elif part:
                tokens.extend(encode_pieces(self.sp_model, keep_whitespace(part), str))
        return tokens

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Join tokens to text."""
        return restore_whitespace(str(self.sp_model.decode_pieces(list(tokens))))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`prompt [gMASK] <sop>`, and with an answer `answer <eop>` after it."""
        ids = [*token_ids_0, self.gmask_token_id, self.bos_token_id]
        if token_ids_1 is not None:
            ids += [*token_ids_1, self.eos_token_id]
        return ids

    def _convert_token_to_id(self, token: str) -> int:
        return int(self.sp_model.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        known = 0 <= index < self.vocab_size
        return str(self.sp_model.id_to_piece(index) if known else self.unk_token)

    def _decode(
        self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs: Any
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        skipped = set(self.all_special_ids) if skip_special_tokens else {self.pad_token_id}
        # The head is wider than the vocabulary: ids beyond it stand for nothing.
        kept = [i for i in ids if i not in skipped and 0 <= i < self.vocab_size]
        return self.convert_tokens_to_string([self._convert_id_to_token(i) for i in kept])


class ChatGLM2Tokenizer(_SentencePieceTokenizer):
    """ChatGLM2-6B and ChatGLM3-6B: `[gMASK] sop text`; ChatGLM3 adds tokens for roles.

    Args:
        vocab_file: path of tokenizer.model.
        with_roles: add `<|system|>`, `<|user|>`, `<|assistant|>` and `<|observation|>`.
        kwargs: for the base class.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    generations = (Generation.CHATGLM2, Generation.CHATGLM3)

    def __init__(self, vocab_file: str, with_roles: bool = False, **kwargs: Any) -> None:
        self.with_roles = with_roles
        self._commands = [*_COMMANDS, *(_ROLES if with_roles else [])]
        kwargs = {"eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>", **kwargs}
        kwargs.setdefault("extra_special_tokens", ["<s>", *self._commands])
        super().__init__(vocab_file, with_roles=with_roles, **kwargs)

    @classmethod
    def options_of(cls, generation: Generation) -> dict[str, Any]:
        """What the constructor is told of a generation."""
        return {"with_roles": generation is Generation.CHATGLM3}

    @property
    def begin_id(self) -> int:
        """Id of the beginning of a text, which no prompt uses."""
        return int(self.sp_model.bos_id())

    @property
    def generation(self) -> Generation:
        """Whose prompt the tokenizer writes."""
        return Generation.CHATGLM3 if self.with_roles else Generation.CHATGLM2

    @property
    def vocab_size(self) -> int:
        """SentencePiece tokens and the commands after them."""
        return int(self.sp_model.get_piece_size()) + len(self._commands)

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id, the commands included."""
        return super().get_vocab() | {token: self.get_command(token) for token in self._commands}

    def get_command(self, token: str) -> int:
        """Id of a control token that no text contains.

        Args:
            token: such as `[gMASK]`, `sop`, and in ChatGLM3 `<|user|>`.
        """
        return int(self.sp_model.get_piece_size()) + self._commands.index(token)

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Split text into tokens; no control token comes of text."""
        return encode_pieces(self.sp_model, text, str)

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Join tokens to text."""
        return str(self.sp_model.decode_pieces(list(tokens)))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`[gMASK] sop prompt`, and with an answer `answer </s>` after it."""
        ids = [self.get_command("[gMASK]"), self.get_command("sop"), *token_ids_0]
        if token_ids_1 is not None:
            ids += [*token_ids_1, self.eos_token_id]
        return ids

    def _convert_token_to_id(self, token: str) -> int:
        if token in self._commands:
            return self.get_command(token)
        return int(self.sp_model.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        pieces = self.sp_model.get_piece_size()
        if not 0 <= index < self.vocab_size:
            return str(self.unk_token)
        return (
            self._commands[index - pieces]
            if index >= pieces
            else str(self.sp_model.id_to_piece(index))
        )

    def _decode(
        self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs: Any
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self.convert_tokens_to_string([self._shown(i, skip_special_tokens) for i in ids])

    def _shown(self, index: int, skip_special_tokens: bool) -> str:
        """How an id reads: ChatGLM3 spells out its commands, ChatGLM2 hides them."""
        if index < self.sp_model.get_piece_size():
            hidden = index < 0 or index in (self.sp_model.unk_id(), 1, self.eos_token_id)
            return "" if hidden else str(self.sp_model.id_to_piece(index))
        if not self.with_roles or skip_special_tokens or index >= self.vocab_size:
            return ""
        return self._convert_id_to_token(index)
