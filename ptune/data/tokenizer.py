"""The SentencePiece tokenizers of the three generations, as transformers tokenizers.

Re-implemented from `tokenization_chatglm.py` beside the weights of THUDM/chatglm-6b,
THUDM/chatglm2-6b and THUDM/chatglm3-6b: the same ids and the same decoded text.  `encode` is
faithful to them, control tokens written out in a text included; `encode_text` never gives one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizer

from ptune.base.folder import BaseModel, Generation, find_base_model
from ptune.base.schema import token_ids
from ptune.data.chat_template import encode
from ptune.data.pieces import encode_pieces, keep_whitespace, restore_whitespace
from ptune.data.template_tokenizer import build_template_tokenizer
from ptune.errors import ConfigError, ModelError
from ptune.files.json_object import read_json_object
from ptune.files.manifest import digest

_COMMANDS = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]
_ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
_CONFIG_FILE = "tokenizer_config.json"
_KEPT = ("padding_side", "truncation_side", "model_max_length")  # by save_pretrained
_KEPT += tuple(PreTrainedTokenizer.SPECIAL_TOKENS_ATTRIBUTES)
_NEVER_NEEDED = ("trust_remote_code", "use_fast")  # as AutoTokenizer is told


def load_tokenizer(path: str | Path, prompt_format: str | None = None) -> PreTrainedTokenizer:
    """Load the tokenizer of a base model.

    Args:
        path: a folder, a hub id or `tiny`.
        prompt_format: `chatglm`, `chatglm2` or `chatglm3`, where the folder does not say which it
            is of.

    Raises:
        ModelError: no such model, or its tokenizer file is missing or damaged.
        ConfigError: the folder shows another generation than `prompt_format`.
    """
    return build_tokenizer(find_base_model(path, weights=False, prompt_format=prompt_format))


def build_tokenizer(base: BaseModel, **options: Any) -> PreTrainedTokenizer:
    """Load the tokenizer of a base model that was found already.

    Raises:
        ModelError: its file is missing or damaged, or config.json names other ids than it has.
    """
    if base.generation is Generation.NATIVE:
        return build_template_tokenizer(base, **options)
    tokenizer = _open(base.path, base.generation, options)
    # Options may give a token another meaning, of which config.json knows nothing.
    _check_ids(base, _open(base.path, base.generation, {}) if options else tokenizer)
    return tokenizer


def _open(folder: Path, generation: Generation, options: dict[str, Any]) -> PreTrainedTokenizer:
    vocab_file = folder / generation.tokenizer_file
    if not vocab_file.is_file():
        raise ModelError(
            f"no {vocab_file.name} in {folder}, the tokenizer of {generation.value}; "
            "download it from the base model"
        )
    try:
        if generation is Generation.CHATGLM:
            return ChatGLMTokenizer(str(vocab_file), **options)
        roles = generation is Generation.CHATGLM3
        return ChatGLM2Tokenizer(str(vocab_file), with_roles=roles, **options)
    except (RuntimeError, OSError) as error:
        raise ModelError(
            f"{vocab_file} ({vocab_file.stat().st_size:,} bytes) is no SentencePiece model, "
            "perhaps truncated or a Git LFS pointer; download it again"
        ) from error


def _check_ids(base: BaseModel, tokenizer: PreTrainedTokenizer) -> None:
    """Compare the vocabulary and the ids that config.json names with those of the tokenizer."""
    size = base.config.get("padded_vocab_size") or base.config["vocab_size"]
    if tokenizer.vocab_size > size:
        raise ModelError(
            f"{tokenizer.vocab_file} has {tokenizer.vocab_size} tokens but config.json {size}; "
            "the two belong to different models, download all files of one"
        )
    for name, ids in token_ids(base.config).items():
        own = getattr(tokenizer, name)
        if own is None:  # ChatGLM2 and 3 have a beginning of text, which no prompt uses
            own = tokenizer.sp_model.bos_id()
        if own not in ids:  # an answer may have several ends, the tokenizer's among them
            raise ModelError(
                f"{name} {', '.join(map(str, ids))} in {base.path / 'config.json'} is not the "
                f"{own} of {tokenizer.vocab_file}; the two are of different revisions, "
                "download all files of one"
            )


def _saved_config(folder: Path) -> dict[str, Any]:
    file = folder / _CONFIG_FILE
    if not file.is_file():
        return {}
    try:
        return read_json_object(file)
    except ValueError as error:
        raise ModelError(f"{file} {error}; save or download it again") from error


def _saved_generation(folder: Path) -> Generation | None:
    """The generation of a folder that `save_pretrained` has written; None for a model's."""
    if (folder / "config.json").is_file():
        return None
    saved = _saved_config(folder)
    if "with_roles" in saved:
        return Generation.CHATGLM3 if saved["with_roles"] else Generation.CHATGLM2
    file = Generation.CHATGLM.tokenizer_file
    return Generation.CHATGLM if saved and (folder / file).is_file() else None


class _SentencePieceTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """What both tokenizers share: a SentencePiece model behind the library's interface."""

    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self.vocab_file = vocab_file
        # Before the base class, whose constructor already asks for the vocabulary.
        self.sp_model = SentencePieceProcessor(model_file=vocab_file)
        kwargs.setdefault("padding_side", "left")
        super().__init__(**kwargs | {"clean_up_tokenization_spaces": False})
        self._check_known([*self.all_special_tokens, *self.added_tokens_encoder])

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        prompt_format: str | None = None,
        **options: Any,
    ) -> PreTrainedTokenizer:
        """Load what `save_pretrained` has written, or the tokenizer of a base or merged model.

        Args:
            pretrained_model_name_or_path: a folder, a hub id or `tiny`.
            prompt_format: as in `load_tokenizer`.
            options: sides, longest length, special tokens; by default what was saved.

        Raises:
            ModelError: no tokenizer, or one of another class.
            ConfigError: an option that there is not.
        """
        folder = Path(pretrained_model_name_or_path)
        base = None
        if (generation := _saved_generation(folder)) is None:
            base = find_base_model(pretrained_model_name_or_path, False, prompt_format)
            folder, generation = base.path, base.generation
        saved = _saved_config(folder)
        kept = {name: saved[name] for name in _KEPT if isinstance(saved.get(name), str | int)}
        for name, value in options.items():
            if name in _KEPT:
                kept[name] = value
            elif value not in (None, False) and name not in _NEVER_NEEDED:
                raise ConfigError(
                    f"from_pretrained of ptune has no option {name}; it has {', '.join(_KEPT)}"
                )
        try:
            tokenizer = build_tokenizer(base, **kept) if base else _open(folder, generation, kept)
        except ValueError as error:
            raise ConfigError(
                f"{error}, for the tokenizer in {folder}; use right or left"
            ) from error
        if not isinstance(tokenizer, cls):
            raise ModelError(
                f"the tokenizer in {folder} is a {type(tokenizer).__name__}, not a "
                f"{cls.__name__}; use ptune.load_tokenizer"
            )
        return tokenizer

    @property
    def end_of_answer_id(self) -> int:
        """The id that ends an answer."""
        return int(self.eos_token_id)

    def content_digest(self) -> str:
        """Tell tokenizers apart by all that decides about ids."""
        return digest(Path(self.vocab_file))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Encode as transformers' tokenizers do.

        Raises:
            ConfigError: offsets are asked for, which a tokenizer in Python does not know.
        """
        if kwargs.get("return_offsets_mapping"):
            raise ConfigError(
                f"return_offsets_mapping is not known to {type(self).__name__}, which is no fast "
                "tokenizer; leave it out"
            )
        return super().__call__(*args, **kwargs)

    def apply_chat_template(
        self, conversation: Any, tools: Sequence[Any] | None = None, **options: Any
    ) -> Any:
        """Turn messages into the ids that `ptune chat` would ask with; see `chat_template.encode`.

        Raises:
            DataError: a message that is none, or none that the generation has a prompt for.
            ConfigError: an option that there is not.
        """
        return encode(self, conversation, tools, **options)

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Refuse new tokens: the vocabulary is the model's.

        Raises:
            ConfigError: one of them is not in it.
        """
        self._check_known(new_tokens)
        return int(super().add_tokens(new_tokens, special_tokens=special_tokens))

    def add_special_tokens(self, special_tokens_dict: dict[str, Any], *args: Any) -> int:
        """Give tokens of the vocabulary a special meaning.

        Raises:
            ConfigError: one of them is not in it.
        """
        for tokens in special_tokens_dict.values():
            self._check_known(tokens)
        return int(super().add_special_tokens(special_tokens_dict, *args))

    def _check_known(self, tokens: Any) -> None:
        for token in map(str, tokens if isinstance(tokens, list | tuple) else [tokens]):
            if token != self.unk_token and self._convert_token_to_id(token) == self.unk_token_id:
                raise ConfigError(
                    f"token {token!r} is not in the vocabulary of {self.vocab_file}, which is the "
                    "model's and does not grow; use one of its tokens"
                )

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for each control token that encoding puts around texts, 0 for the texts' own."""
        if already_has_special_tokens:
            return list(super().get_special_tokens_mask(token_ids_0, token_ids_1, True))
        texts = [None if ids is None else [-1] * len(ids) for ids in (token_ids_0, token_ids_1)]
        return [int(i != -1) for i in self.build_inputs_with_special_tokens(*texts)]

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        size = self.sp_model.get_piece_size()
        return {self.sp_model.id_to_piece(i): i for i in range(size)}

    def encode_text(self, text: str) -> list[int]:
        """Turn text into ids, whatever it says: no control token ever comes out."""
        return encode_pieces(self.sp_model, text, int)

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Copy the SentencePiece model into `save_directory`."""
        target = Path(save_directory) / self.vocab_files_names["vocab_file"]
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)


class ChatGLMTokenizer(_SentencePieceTokenizer):
    """ChatGLM-6B: `text [gMASK] <sop>`, whitespace kept by tokens of its own."""

    vocab_files_names = {"vocab_file": "ice_text.model"}
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

    def __init__(self, vocab_file: str, with_roles: bool = False, **kwargs: Any) -> None:
        self.with_roles = with_roles
        self._commands = [*_COMMANDS, *(_ROLES if with_roles else [])]
        kwargs = {"eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>", **kwargs}
        kwargs.setdefault("extra_special_tokens", ["<s>", *self._commands])
        super().__init__(vocab_file, with_roles=with_roles, **kwargs)

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
