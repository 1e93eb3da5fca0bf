"""What a config.json of each generation holds: fields, types, ranges, and what binds them.

A field that changes the computation and differs from all released models is refused; one that ptune
does not know is none of its business.  The released files lie beside the weights of
THUDM/chatglm-6b, THUDM/chatglm2-6b, THUDM/chatglm3-6b and THUDM/glm-4-9b.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptune.errors import ModelError

_DOWNLOAD = "download config.json again"
_RELEASED = "use the folder of a released model"
_SHOWN = 60  # characters of a value in an error
_LONG = re.compile(r"chatglm\d-6b-\d+k\b|glm-4-9b-chat\b", re.IGNORECASE)  # have a rope_ratio


@dataclass(frozen=True)
class _Field:
    """What a field may hold.

    Attributes:
        expected: the same in words, after `is not`.
        accepts: whether a value will do.
        required: whether it must be there.
        nullable: whether null stands for an absent one.
        mend: what to do about another value.
    """

    expected: str
    accepts: Callable[[Any], bool]
    required: bool = True
    nullable: bool = False
    mend: str = _DOWNLOAD


def _is_integer(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high  # true is an int, too


def _integer(high: int, low: int = 1, required: bool = True) -> _Field:
    """A whole number; null may stand for one that is not required."""
    expected = f"a whole number from {low} to {high}"
    return _Field(expected, lambda value: _is_integer(value, low, high), required, not required)


def _number(low: float, high: float, required: bool = True) -> _Field:
    def accepts(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high

    return _Field(f"a number from {low:g} to {high:g}", accepts, required)


def _flag(nullable: bool = False) -> _Field:
    return _Field("true or false", lambda value: type(value) is bool, False, nullable)


def _text() -> _Field:
    return _Field("a text", lambda value: type(value) is str, False, True)


def _released(*only: Any) -> _Field:
    """A field that all released models agree about."""

    def accepts(value: Any) -> bool:
        return any(type(value) is type(known) and value == known for known in only)

    expected = f"{json.dumps(only[0])}, as in all released models"
    return _Field(expected, accepts, required=False, mend=_RELEASED)


def _token_ids(required: bool) -> _Field:
    """An id, or several of them, as ends of an answer may be."""

    def accepts(value: Any) -> bool:
        ids = value if type(value) is list else [value]
        return bool(ids) and all(_is_integer(i, 0, _VOCABULARY - 1) for i in ids)

    return _Field("a token id or a list of them", accepts, required, nullable=not required)


def _token_id(required: bool) -> _Field:
    return _integer(_VOCABULARY - 1, low=0, required=required)


# Above what any model of the family has, and low enough for a model of that size to be described
# without storage in seconds.
_LAYERS, _WIDTH, _VOCABULARY, _TOKENS = 1000, 2**20, 2**24, 2**31 - 1

_BOTH = {
    "hidden_size": _integer(_WIDTH),
    "num_layers": _integer(_LAYERS),
    "num_attention_heads": _integer(_WIDTH),
    "layernorm_epsilon": _number(1e-12, 1e-2),
    "quantization_bit": _Field(
        "4, 8 or 0", lambda value: type(value) is int and value in (0, 4, 8), False, True
    ),
    "use_cache": _flag(),
    "pre_seq_len": _integer(_WIDTH, low=0, required=False),
    "prefix_projection": _flag(nullable=True),
    "prompt_format": _text(),
    "_name_or_path": _text(),
    "rope_scaling": _released(None),
}
_FIRST = _BOTH | {
    "vocab_size": _integer(_VOCABULARY),
    "inner_hidden_size": _integer(_WIDTH),
    "max_sequence_length": _integer(_TOKENS),
    "bos_token_id": _token_id(required=True),
    "eos_token_id": _token_ids(required=True),
    "mask_token_id": _token_id(required=True),
    "gmask_token_id": _token_id(required=True),
    "pad_token_id": _token_id(required=True),
    "quantization_embeddings": _flag(),
    "position_encoding_2d": _released(True),
    "tie_word_embeddings": _released(True),
}
_LATER = _BOTH | {
    "padded_vocab_size": _integer(_VOCABULARY),
    "ffn_hidden_size": _integer(_WIDTH),
    "kv_channels": _integer(_WIDTH),
    "multi_query_group_num": _integer(_WIDTH),
    "seq_length": _integer(_TOKENS),
    "multi_query_attention": _flag(),
    "add_qkv_bias": _flag(),
    "rope_ratio": _number(1, 1e6, required=False),
    "bos_token_id": _token_id(required=False),
    "eos_token_id": _token_ids(required=False),
    "pad_token_id": _token_id(required=False),
    "add_bias_linear": _released(False),
    "apply_residual_connection_post_layernorm": _released(False),
    "post_layer_norm": _released(True),
    "rmsnorm": _released(True),
    "fp32_residual_connection": _released(False),
    "hidden_dropout": _released(0.0, 0),
    "attention_dropout": _released(0.0, 0),
    "tie_word_embeddings": _released(False),
}


def is_first(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of ChatGLM-6B, and not of a later generation."""
    return "inner_hidden_size" in config


def known_fields(config: Mapping[str, Any]) -> frozenset[str]:
    """Names of the fields that are checked."""
    return frozenset(_FIRST if is_first(config) else _LATER)


def token_ids(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """The ids that a checked config.json names, by field."""
    ids = {}
    for name in _FIRST if is_first(config) else _LATER:
        if name.endswith("_token_id") and (value := config.get(name)) is not None:
            ids[name] = value if isinstance(value, list) else [value]
    return ids


def check_config(config: Mapping[str, Any], file: Path) -> None:
    """Check every field of a config.json, and then what binds them.

    Args:
        config: what the file holds.
        file: named in errors.

    Raises:
        ModelError: a field that is missing or wrong, with its value and what is expected.
    """
    for name, field in (_FIRST if is_first(config) else _LATER).items():
        value = config.get(name)
        if name not in config:
            if field.required:
                raise ModelError(f"{name} is missing in {file}; {_DOWNLOAD}")
        elif not (field.accepts(value) or (field.nullable and value is None)):
            shown = json.dumps(value, ensure_ascii=False)
            if len(shown) > _SHOWN:
                shown = shown[:_SHOWN] + " ..."
            raise ModelError(f"{name} {shown} in {file} is not {field.expected}; {field.mend}")
    _check_heads(config, file)
    _check_ids(config, file)
    name = str(config.get("_name_or_path"))
    # Without its ratio, a model for long texts computes as one for short ones.
    if "rope_ratio" not in config and _LONG.search(name):
        raise ModelError(f"rope_ratio is missing in {file}, but {name} has one; {_DOWNLOAD}")


def _check_heads(config: Mapping[str, Any], file: Path) -> None:
    """Whether the heads share what they must, and can be turned: in fours, a quarter each."""
    heads = config["num_attention_heads"]
    if is_first(config):
        hidden = config["hidden_size"]
        if hidden % (4 * heads):
            raise ModelError(
                f"num_attention_heads {heads} in {file} does not divide hidden_size {hidden} into "
                f"heads of a multiple of 4; {_DOWNLOAD}"
            )
        return
    groups = config["multi_query_group_num"]
    if config.get("multi_query_attention", False) and heads % groups:
        raise ModelError(
            f"multi_query_group_num {groups} in {file} does not divide num_attention_heads "
            f"{heads}; {_DOWNLOAD}"
        )
    if config["kv_channels"] % 4:
        raise ModelError(
            f"kv_channels {config['kv_channels']} in {file} is not a multiple of 4; {_DOWNLOAD}"
        )


def _check_ids(config: Mapping[str, Any], file: Path) -> None:
    vocabulary = "vocab_size" if is_first(config) else "padded_vocab_size"
    size = config[vocabulary]
    for name, ids in token_ids(config).items():
        if max(ids) >= size:
            raise ModelError(
                f"{name} {max(ids)} in {file} is beyond its {vocabulary} {size}; the two are of "
                "different revisions, download all files of one"
            )
