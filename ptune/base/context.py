"""How many tokens a base model can see at once, and whether what is asked for fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ptune.base.native import is_native, native_context
from ptune.errors import ConfigError


def context_length(config: Mapping[str, Any]) -> int | None:
    """Tokens of prompt and answer together, which the prefix does not count among.

    Args:
        config: a config.json.

    Returns:
        The first generation has 2,048 where nothing says otherwise; None for another model that
        says nothing.
    """
    if is_native(config):
        return native_context(config)
    if "padded_vocab_size" not in config:
        length = config.get("max_sequence_length", 2048)
    else:
        length = config.get("seq_length")
    return length if isinstance(length, int) else None


@dataclass(frozen=True)
class Answer:
    """What a setting leaves an answer.

    Attributes:
        setting: its name.
        tokens: its value.
        origin: where the value is from, if not from this command, which cannot change it then.
    """

    setting: str
    tokens: int
    origin: str = ""


def check_context(
    config: Mapping[str, Any], model: str, max_source_length: int, answer: Answer
) -> None:
    """Refuse lengths that a model cannot hold.

    Args:
        config: an official config.json.
        model: its name.
        max_source_length: tokens of the prompt.
        answer: what follows it.

    Raises:
        ConfigError: with all numbers, and with what fits.
    """
    context, tokens = context_length(config), answer.tokens
    if context is None or max_source_length + tokens <= context:
        return
    room = context - min(max_source_length, tokens, context // 2)
    fits = f"--max-source-length {min(max_source_length, room)}"
    if answer.origin:
        fits = f"--max-source-length {context - tokens}"
    else:
        fits += f" --{answer.setting.replace('_', '-')} {min(tokens, room)}"
    origin = f" {answer.origin}" if answer.origin else ""
    raise ConfigError(
        f"max_source_length {max_source_length:,} and {answer.setting} {tokens:,}{origin} are more "
        f"than the context of {context:,} tokens of {model}; use e.g. {fits}"
    )
