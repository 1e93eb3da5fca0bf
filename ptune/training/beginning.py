"""What a new prefix begins as, where not at random: a text, or records of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from ptune.base.context import context_length
from ptune.base.folder import BaseModel
from ptune.checkpoint.folder import find_whole_checkpoint
from ptune.checkpoint.prefix import prefix_form, read_prefix
from ptune.config.declaration import flag
from ptune.config.settings import TrainSettings
from ptune.config.shared_settings import PREFIX_RANGE
from ptune.data.examples import digest_ids
from ptune.data.files import read_whole_text
from ptune.data.prompt import as_context, render_text
from ptune.errors import ConfigError
from ptune.models.prefix_encoder import PrefixEncoder
from ptune.models.text_prefix import start_from, text_states


@dataclass(frozen=True)
class Beginning:
    """Tokens whose keys and values a prefix begins as.

    Attributes:
        ids: `P` of them.
        notice: from where they are, for people.
    """

    ids: tuple[int, ...]
    notice: str

    @property
    def digest(self) -> str:
        """SHA-256 of the ids, in hexadecimal."""
        return digest_ids(self.ids)


def find_beginning(
    settings: TrainSettings,
    tokenizer: Any,
    base: BaseModel,
    records: datasets.Dataset | None,
    notices: list[str],
) -> tuple[TrainSettings, Beginning | None]:
    """Find what a prefix begins as, and with it its length where none was asked for.

    Args:
        settings: of the training.
        tokenizer: from `build_tokenizer`.
        base: whose prompt to use.
        records: rendered, for `--init-data`.
        notices: is told how a file was read.

    Returns:
        The settings with `pre_seq_len`, and None for a prefix that begins at random or as another.

    Raises:
        ConfigError: more text than the model can see, or fewer records than asked for.
        DataError: a text that cannot be read.
    """
    if settings.init_data is not None:
        assert records is not None
        name, ids = "init_data", _examples(settings.init_data, records, tokenizer, base)
    elif settings.init_text_file is not None:
        name = "init_text_file"
        text = read_whole_text(settings.init_text_file, notices, flag(name))
        ids = render_text(tokenizer, base.generation, text)
    elif settings.init_text is not None:
        name, ids = "init_text", render_text(tokenizer, base.generation, settings.init_text)
    else:
        return settings, None
    length = settings.pre_seq_len if "pre_seq_len" in settings.given else len(ids)
    _check_length(length, name, base)
    fitted = tuple((ids * -(-length // len(ids)))[:length])
    said = f"the {len(ids):,} tokens"
    if length < len(ids):
        said = f"the first {length:,} of {len(ids):,} tokens"
    elif length > len(ids):
        said += f", repeated to {length:,},"
    notice = f"the prefix begins as {said} of {flag(name)}"
    return dataclasses.replace(settings, pre_seq_len=length), Beginning(fitted, notice)


def find_init_prefix(settings: TrainSettings) -> tuple[TrainSettings, list[str]]:
    """Fill in folder, length and projection of the prefix to start from.

    Returns:
        The settings, and what to say of a damaged checkpoint that was passed over.

    Raises:
        CheckpointError: there is no prefix to start from.
        ConfigError: it is of another form than was asked for.
    """
    if settings.init_prefix is None:
        return settings, []
    folder, passed_over = find_whole_checkpoint(settings.init_prefix)
    length, projection = prefix_form(read_prefix(folder))
    found: dict[str, Any] = {"pre_seq_len": length, "prefix_projection": projection}
    for name, value in found.items():
        if name in settings.given and (asked := getattr(settings, name)) != value:
            raise ConfigError(
                f"{name} {asked} does not go with the prefix of {settings.init_prefix}, which has "
                f"{name} {value}; leave {flag(name, asked)} out, or do without --init-prefix"
            )
    settings = dataclasses.replace(settings, init_prefix=folder.absolute(), **found)
    return settings, [passed_over] if passed_over else []


def begin(encoder: PrefixEncoder, beginning: Beginning, model: Any) -> None:
    """Let a new prefix begin; the model is not changed."""
    start_from(encoder, text_states(model, beginning.ids))


def _examples(count: int, records: datasets.Dataset, tokenizer: Any, base: BaseModel) -> list[int]:
    """Records spread over the data, as worked examples one after the other."""
    if count > len(records):
        raise ConfigError(
            f"init_data {count:,} is more than the {len(records):,} records; use at most that"
        )
    rows = [place * len(records) // count for place in range(count)]
    examples: Sequence[Sequence[int]] = records[rows]["input_ids"]
    return [i for ids in examples for i in as_context(tokenizer, base.generation, ids)]


def _check_length(length: int, name: str, base: BaseModel) -> None:
    context = context_length(base.config)
    most = min(int(PREFIX_RANGE.most or length), context or length)
    if length > most:
        raise ConfigError(
            f"{flag(name)} has {length:,} tokens, and a prefix can begin as {most:,} at most; "
            f"take less of it, or the first part with --pre-seq-len {most}"
        )
