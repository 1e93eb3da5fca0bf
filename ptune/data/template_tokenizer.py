"""The tokenizer of a model that transformers has itself, with what the prompts need of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ptune.base.folder import BaseModel, Generation
from ptune.data.messages import ASSISTANT, USER, check_text
from ptune.data.rows import BadRecord
from ptune.errors import DataError, ModelError
from ptune.files.json_text import to_json

_SMALL = {".json", ".jinja", ".txt", ".model"}  # files that make a tokenizer
_SHARED: dict[Any, PreTrainedTokenizerBase] = {}
_BYTES = {char: byte for byte, char in bytes_to_unicode().items()}
_ASKED = [{"role": USER, "content": "a"}]
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_MARK = "\ufdd0"  # no character, which no text may hold


class TemplateTokenizer:
    """What a tokenizer of the library gets in front of its class, which stays as it is."""

    generation = Generation.NATIVE

    def encode_text(self, text: str) -> list[int]:
        """Turn text into ids, whatever it says: no control token ever comes out.

        Raises:
            DataError: the tokenizer cannot spell a control token that the text names.
        """
        try:
            check_text(text, "the text to encode", blank_is_fine=True)
        except BadRecord as error:
            raise DataError(f"{error}; leave it out") from error
        return self.encode_with_places(text)[0]

    def encode_with_places(self, text: str) -> tuple[list[int], list[int]]:
        """The same, and the character that each token begins with."""
        encoded = self._text_backend.encode(text, add_special_tokens=False)
        return list(encoded.ids), [start for start, _ in encoded.offsets]

    @cached_property
    def _text_backend(self) -> Tokenizer:
        """The tokenizer with control tokens under names that no text has; all ids stay."""
        described = json.loads(self.backend_tokenizer.to_str())  # type: ignore[attr-defined]
        hidden = self.control_ids
        for token in described["added_tokens"]:
            if token["id"] in hidden:
                token["content"] = _MARK + token["content"]
        described["post_processor"] = described["truncation"] = described["padding"] = None
        vocabulary = described["model"].get("vocab")
        if isinstance(vocabulary, dict):
            renamed = {(_MARK + k if i in hidden else k): i for k, i in vocabulary.items()}
            described["model"]["vocab"] = renamed
        elif isinstance(vocabulary, list):
            unknown = described["model"].get("unk_id")
            described["model"]["vocab"] = [
                [_MARK + piece if i in hidden and i != unknown else piece, score]
                for i, (piece, score) in enumerate(vocabulary)
            ]
        return Tokenizer.from_str(to_json(described))

    @cached_property
    def beginning(self) -> list[int]:
        """Ids that the tokenizer puts in front of every text."""
        whole = list(self("a")["input_ids"])  # type: ignore[operator]
        bare = list(self("a", add_special_tokens=False)["input_ids"])  # type: ignore[operator]
        places = range(len(whole) - len(bare), -1, -1)
        at = next((n for n in places if whole[n : n + len(bare)] == bare), 0)
        return whole[:at]

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids that steer the model and stand for no text."""
        added = self.added_tokens_decoder  # type: ignore[attr-defined]
        special = {index for index, token in added.items() if token.special}
        named = set(self.all_special_ids)  # type: ignore[attr-defined]
        # What stands around the messages of a template steers as well, whatever it is called.
        framing = added.keys() & self._frame_ids()
        unknown = {self.unk_token_id} - {self.eos_token_id}  # type: ignore[attr-defined]
        return frozenset((special | named | framing) - unknown - {None})

    def _frame_ids(self) -> set[int]:
        """Ids of what a chat template puts around messages."""
        if not self.chat_template:  # type: ignore[attr-defined]
            return set()
        system = [{"role": "system", "content": "a"}]
        said = [*_ASKED, {"role": ASSISTANT, "content": "a"}, *_ASKED]
        ids: set[int] = set()
        for messages in (_ASKED, said, [*system, *said]):
            with suppress(ModelError):  # there is no role for an instruction
                text = self.fill_template(messages)
                ids.update(self(text, add_special_tokens=False)["input_ids"])  # type: ignore[operator]
        return ids

    @cached_property
    def end_of_answer_id(self) -> int:
        """The id that ends an answer: what the chat template puts behind one, else `eos_token`.

        Raises:
            ModelError: there is neither.
        """
        if self.chat_template:  # type: ignore[attr-defined]
            said = [{"role": USER, "content": "a"}, {"role": ASSISTANT, "content": _MARK}]
            behind = self.fill_template(said, ask=False).rpartition(_MARK)[2]
            ids = self(behind, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
            if (end := next((i for i in ids if i in self.control_ids), None)) is not None:
                return int(end)
        if self.eos_token_id is None:  # type: ignore[attr-defined]
            raise ModelError(
                f"the tokenizer in {self.name_or_path} has no eos_token, which ends an answer; "  # type: ignore[attr-defined]
                "name it in its tokenizer_config.json"
            )
        return int(self.eos_token_id)  # type: ignore[attr-defined]

    @cached_property
    def has_system_role(self) -> bool:
        """Whether the chat template shows what a system message says."""
        said = [{"role": "system", "content": _MARK}, {"role": USER, "content": "a"}]
        try:
            return _MARK in self.fill_template(said)
        except ModelError:  # as Gemma's does
            return False

    def fill_template(self, messages: Sequence[dict[str, str]], ask: bool = True) -> str:
        """Write messages as the chat template does, which the library runs in a sandbox.

        Args:
            messages: of `role` and `content`.
            ask: for an answer.

        Raises:
            ModelError: the template refuses them.
        """
        try:
            return super().apply_chat_template(  # type: ignore[misc, no-any-return]
                list(messages), tokenize=False, add_generation_prompt=ask
            )
        except (TemplateError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"the chat template in {self.name_or_path} refuses a conversation ({reason}); "  # type: ignore[attr-defined]
                "leave its roles out, or take another model"
            ) from error

    def token_bytes(self, token_id: int) -> bytes:
        """What stands in a text for a token, its leading blank included."""
        named = self.convert_ids_to_tokens(token_id)  # type: ignore[attr-defined]
        if named is None:  # the embedding may be wider than the vocabulary
            return b""
        token = str(named)
        if token_id in self.control_ids:
            return token.encode()
        if self._has_byte_tokens and all(char in _BYTES for char in token):
            return bytes(_BYTES[char] for char in token)
        if fallback := _BYTE_FALLBACK.fullmatch(token):
            return bytes([int(fallback[1], 16)])
        return token.replace("\u2581", " ").encode()

    def show_token(self, token_id: int) -> str:
        """A token as people are shown it, alone; bytes that are no character as they are named."""
        text = self.token_bytes(token_id).decode("utf-8", "replace")
        named = str(self.convert_ids_to_tokens(token_id))  # type: ignore[attr-defined]
        return named if "\ufffd" in text else text

    @cached_property
    def _has_byte_tokens(self) -> bool:
        """Whether its tokens spell bytes by characters, as GPT-2's do."""
        decoder = json.loads(self.backend_tokenizer.to_str())["decoder"] or {}  # type: ignore[attr-defined]
        parts = decoder.get("decoders", [decoder])
        return any(part.get("type") == "ByteLevel" for part in parts)

    def content_digest(self) -> str:
        """Tell tokenizers apart by all that decides about ids."""
        backend = self.backend_tokenizer.to_str()  # type: ignore[attr-defined]
        parts = f"{backend}\0{self.chat_template}\0{self.special_tokens_map}"  # type: ignore[attr-defined]
        return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()


def shared_template_tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    """The same, loaded once for all who only ask it; a vocabulary of 150,000 takes a second.

    Args:
        base: whose files have not been changed since it was loaded, or it is loaded anew.

    Raises:
        ModelError: from `build_template_tokenizer`.
    """
    files = sorted(file for file in base.path.iterdir() if file.suffix in _SMALL)
    stats = [(file.name, file.stat()) for file in files]
    state = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
    key = (base.path.absolute(), state)
    if key not in _SHARED:
        _SHARED.clear()  # one is enough
        _SHARED[key] = build_template_tokenizer(base)
    return _SHARED[key]


def build_template_tokenizer(base: BaseModel, **options: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model that transformers has itself.

    Args:
        base: from `find_base_model`.
        options: for the library.

    Raises:
        ModelError: there is none, it is damaged, or not of those that know where a token stands.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            base.path,
            trust_remote_code=False,
            local_files_only=True,
            clean_up_tokenization_spaces=False,
            **options,
        )
    except Exception as error:  # each of its readers has errors of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the tokenizer in {base.path} could not be read ({reason}); "
            "download all files of the model"
        ) from error
    size, wide = base.config.get("vocab_size"), max(tokenizer.get_vocab().values(), default=-1)
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise ModelError(
            f"no tokenizer in {base.path} (no tokenizer.json, or one that knows no text); "
            "download all files of the model"
        )
    if isinstance(size, int) and wide >= size:
        raise ModelError(
            f"the tokenizer in {base.path} has ids up to {wide:,} but vocab_size in config.json is "
            f"{size:,}; the two belong to different models, download all files of one"
        )
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer in {base.path} is a {type(tokenizer).__name__}, which cannot tell the "
            "place of a token in its text; take a folder with tokenizer.json"
        )
    library = type(tokenizer)
    names = {"__module__": library.__module__}
    tokenizer.__class__ = type(library.__name__, (TemplateTokenizer, library), names)
    if tokenizer.pad_token_id is None:  # padding is masked, whatever it is
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(tokenizer.end_of_answer_id)
    return tokenizer  # type: ignore[no-any-return]
