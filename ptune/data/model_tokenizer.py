"""What the tokenizers of all generations share, as transformers tokenizers.

A vocabulary in a file of the base model, which does not grow; prompts are rendered by ptune.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizer

from ptune.base.folder import BaseModel, Generation, find_base_model
from ptune.base.schema import token_ids
from ptune.base.tokenizer_file import TokenizerFile, kind_of
from ptune.data.chat_template import encode
from ptune.errors import ConfigError, ModelError
from ptune.files.json_object import read_json_object
from ptune.files.manifest import digest

_CONFIG_FILE = "tokenizer_config.json"
_KEPT = ("padding_side", "truncation_side", "model_max_length")  # by save_pretrained
_KEPT += tuple(PreTrainedTokenizer.SPECIAL_TOKENS_ATTRIBUTES)
_NEVER_NEEDED = ("trust_remote_code", "use_fast")  # as AutoTokenizer is told


class ModelTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """A tokenizer of one generation, or of two.

    Attributes:
        generations: whose it is.
        file_kind: what its file is.
    """

    model_input_names = ["input_ids", "attention_mask"]
    generations: ClassVar[tuple[Generation, ...]]
    file_kind: ClassVar[TokenizerFile]

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self.vocab_file = vocab_file
        kwargs.setdefault("padding_side", "left")
        super().__init__(**kwargs | {"clean_up_tokenization_spaces": False})
        self._check_known([*self.all_special_tokens, *self.added_tokens_encoder])

    @property
    @abstractmethod
    def generation(self) -> Generation:
        """Whose prompt the tokenizer writes."""

    @abstractmethod
    def encode_text(self, text: str) -> list[int]:
        """Turn text into ids, whatever it says: no control token ever comes out."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """What stands in a text for a token, its leading blank included."""

    def show_token(self, token_id: int) -> str:
        """A token as people are shown it, alone."""
        return str(self.convert_ids_to_tokens(token_id))

    @classmethod
    def options_of(cls, generation: Generation) -> dict[str, Any]:
        """What the constructor is told of a generation."""
        return {}

    @property
    def end_of_answer_id(self) -> int:
        """The id that ends an answer."""
        return int(self.eos_token_id)

    def content_digest(self) -> str:
        """Tell tokenizers apart by all that decides about ids."""
        return digest(Path(self.vocab_file))

    @property
    def begin_id(self) -> int | None:
        """Id of the beginning of a text, which the prompts of later generations do not use."""
        return self.bos_token_id  # type: ignore[no-any-return]

    @classmethod
    def open(cls, folder: Path, generation: Generation, options: dict[str, Any]) -> ModelTokenizer:
        """Load the tokenizer's file from a folder.

        Raises:
            ModelError: it is not there, damaged, or of another kind.
        """
        vocab_file = folder / generation.tokenizer_file
        if not vocab_file.is_file():
            raise ModelError(
                f"no {vocab_file.name} in {folder}, the tokenizer of {generation.value}; "
                "download it from the base model"
            )
        found = kind_of(vocab_file)
        if found is not cls.file_kind and found in (
            TokenizerFile.SENTENCEPIECE,
            TokenizerFile.RANKS,
        ):
            raise ModelError(
                f"{vocab_file} is a {found.value}, but the tokenizer of {generation.value} is a "
                f"{cls.file_kind.value}; download all files of one model into one folder"
            )
        try:
            return cls(str(vocab_file), **cls.options_of(generation), **options)
        except (RuntimeError, OSError) as error:
            what = f"{vocab_file} ({vocab_file.stat().st_size:,} bytes) is no {cls.file_kind.value}"
            raise ModelError(
                f"{what}, perhaps truncated or a Git LFS pointer; download it again"
            ) from error

    @classmethod
    def build(cls, base: BaseModel, options: dict[str, Any]) -> ModelTokenizer:
        """Load the tokenizer of a base model, and compare it with config.json.

        Raises:
            ModelError: its file is missing or damaged, or config.json names other ids than it has.
        """
        tokenizer = cls.open(base.path, base.generation, options)
        # Options may give a token another meaning, of which config.json knows nothing.
        own = cls.open(base.path, base.generation, {}) if options else tokenizer
        own.check_ids(base)
        return tokenizer

    def check_ids(self, base: BaseModel) -> None:
        """Compare the vocabulary and the ids that config.json names with the tokenizer's.

        Raises:
            ModelError: they differ.
        """
        size = base.config.get("padded_vocab_size") or base.config["vocab_size"]
        if self.vocab_size > size:
            raise ModelError(
                f"{self.vocab_file} has {self.vocab_size} tokens but config.json {size}; "
                "the two belong to different models, download all files of one"
            )
        for name, ids in token_ids(base.config).items():
            own = self.begin_id if name == "bos_token_id" else getattr(self, name)
            shown = "none" if own is None else own
            if own not in ids:  # an answer may have several ends, the tokenizer's among them
                raise ModelError(
                    f"{name} {', '.join(map(str, ids))} in {base.path / 'config.json'} is not the "
                    f"{shown} of {self.vocab_file}; the two are of different revisions, "
                    "download all files of one"
                )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        prompt_format: str | None = None,
        **options: Any,
    ) -> ModelTokenizer:
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
        if generation not in cls.generations:
            raise ModelError(
                f"the tokenizer in {folder} is of {generation.value}, not a {cls.__name__}; "
                "use ptune.load_tokenizer"
            )
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
            return cls.build(base, kept) if base else cls.open(folder, generation, kept)
        except ValueError as error:
            raise ConfigError(
                f"{error}, for the tokenizer in {folder}; use right or left"
            ) from error

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

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Copy the tokenizer's file into `save_directory`."""
        target = Path(save_directory) / self.vocab_files_names["vocab_file"]
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)


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
    if saved and (folder / file).is_file():
        return Generation.CHATGLM
    ranks = kind_of(folder / Generation.GLM4.tokenizer_file) is TokenizerFile.RANKS
    return Generation.GLM4 if saved and ranks else None
