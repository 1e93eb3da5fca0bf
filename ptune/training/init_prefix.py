"""The prefix of `--init-prefix`: that of a checkpoint, or one made of several.

Prefixes have no positions of their own: behind several, one after the other, a text stands as
it does behind each alone, and sees all their tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptune.base.folder import BaseModel
from ptune.checkpoint.base import check_fingerprint, check_prompt_format
from ptune.checkpoint.folder import find_whole_checkpoint
from ptune.checkpoint.prefix import build_prefix, digest_prefix, prefix_form, read_prefix
from ptune.config.declaration import flag
from ptune.config.settings import TrainSettings
from ptune.config.shared_settings import PREFIX_RANGE
from ptune.errors import ConfigError
from ptune.models.prefix_encoder import PrefixEncoder, PrefixShape, stack_prefix
from ptune.models.text_prefix import start_from


def find_init_prefix(settings: TrainSettings) -> tuple[TrainSettings, list[str]]:
    """Fill in folders, length and projection of the prefix to start from.

    Returns:
        The settings, and what to say of it: a damaged checkpoint that was passed over, a projection
        that the new prefix does not have.

    Raises:
        CheckpointError: there is no prefix to start from.
        ConfigError: it is of another form than was asked for, or several do not go together.
    """
    if not settings.init_prefix:
        return settings, []
    found = [find_whole_checkpoint(folder) for folder in settings.init_prefix]
    notices = [passed_over for _, passed_over in found if passed_over]
    folders = [folder.absolute() for folder, _ in found]
    forms = [prefix_form(read_prefix(folder)) for folder in folders]
    lengths, projections = [length for length, _ in forms], [projected for _, projected in forms]
    length, projection = lengths[0], projections[0]
    if len(folders) > 1:
        length, projection = _merged_length(settings, lengths), False
        notices += [
            f"the prefix of {folder} is taken by the keys and values that its projection computes; "
            "the new one has no projection"
            for folder, projected in zip(folders, projections, strict=True)
            if projected
        ]
    _check_asked(settings, {"pre_seq_len": length, "prefix_projection": projection})
    settings = dataclasses.replace(
        settings,
        init_prefix=tuple(folders),
        pre_seq_len=length,
        prefix_projection=projection,
    )
    return settings, notices


def _merged_length(settings: TrainSettings, lengths: list[int]) -> int:
    assert settings.init_prefix
    if settings.init_merge == "concat":
        if (length := sum(lengths)) not in PREFIX_RANGE:
            said = " + ".join(f"{part:,}" for part in lengths)
            raise ConfigError(
                f"--init-merge concat gives a prefix of {length:,} tokens ({said}); its length may "
                f"be {PREFIX_RANGE}, leave out an --init-prefix"
            )
        return length
    first, *others = lengths
    for folder, other in zip(settings.init_prefix[1:], others, strict=True):
        if other != first:
            raise ConfigError(
                f"prefixes of {first:,} and {other:,} tokens ({settings.init_prefix[0]}, {folder}) "
                "have no mean; use --init-merge concat, or prefixes of one length"
            )
    return first


def _check_asked(settings: TrainSettings, found: dict[str, Any]) -> None:
    """Refuse another form than the prefix to start from has."""
    assert settings.init_prefix
    folders = " and ".join(map(str, settings.init_prefix))
    one = len(settings.init_prefix) == 1
    what = f"prefix of {folders}, which has" if one else f"prefixes of {folders}, which give"
    for name, value in found.items():
        if name in settings.given and (asked := getattr(settings, name)) != value:
            raise ConfigError(
                f"{name} {asked} does not go with the {what} {name} {value}; "
                f"leave {flag(name, asked)} out, or do without --init-prefix"
            )


def check_init_prefix(settings: TrainSettings, base: BaseModel) -> None:
    """Refuse prefixes that were trained with another generation's prompt.

    Raises:
        CheckpointError: naming both.
    """
    for folder in settings.init_prefix or ():
        check_prompt_format(base, folder)


def digest_init_prefix(folders: Sequence[Path]) -> str:
    """Tell what a run starts from by the tensors, of several in their order.

    Returns:
        A SHA-256 in hexadecimal; of one prefix that of `digest_prefix`.
    """
    digests = [digest_prefix(folder) for folder in folders]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def build_init_prefix(
    shape: PrefixShape, settings: TrainSettings, base: BaseModel
) -> PrefixEncoder:
    """Read the prefix to start from.

    Args:
        shape: what `base` demands.
        settings: with the form of `find_init_prefix`.
        base: of the run; what was trained on another is refused.

    Raises:
        CheckpointError: no prefix there, an incomplete one, or one of another model.
    """
    assert settings.init_prefix
    for folder in settings.init_prefix:
        check_fingerprint(base, folder)
    dropout = settings.prefix_dropout
    if len(settings.init_prefix) == 1:
        return build_prefix(shape, settings.init_prefix[0], base, dropout)
    states = [
        stack_prefix(build_prefix(shape, folder, base).eval(), torch.float32)
        for folder in settings.init_prefix
    ]
    prefix = PrefixEncoder(shape, settings.pre_seq_len, dropout=dropout)
    start_from(prefix, _merge(states, settings.init_merge))
    return prefix


def _merge(states: Sequence[Tensor], how: str) -> Tensor:
    """From keys and values `[L, 2, G, P, D]` of several prefixes to those of one."""
    return torch.cat(list(states), dim=-2) if how == "concat" else torch.stack(list(states)).mean(0)
