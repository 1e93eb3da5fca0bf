"""The records that a training has held out, found again in its data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets

from ptune.base.folder import Generation
from ptune.checkpoint.metadata import CheckpointConfig
from ptune.config.declaration import flag
from ptune.data.examples import digest_examples, render_examples
from ptune.data.held_out import split_records
from ptune.data.prompt import Lengths
from ptune.errors import DataError


def find_held_out(
    records: datasets.Dataset, metadata: CheckpointConfig, tokenizer: Any, given: Sequence[str]
) -> datasets.Dataset:
    """Take the records that a training has held out, if they are what they were.

    Args:
        records: of the training's data, as they are now.
        metadata: of the training; its `inputs` have `held_out`.
        tokenizer: of the base model.
        given: names of the settings by which other columns may be read than the training read.

    Raises:
        DataError: they cannot be told any more, since the data has changed, or have changed.
    """
    trained, held_out = metadata.settings, metadata.inputs["held_out"]
    data = ", ".join(trained["data"])
    if len(records) != held_out["of"]:
        raise DataError(
            f"the training data {data} has {len(records):,} records, it had {held_out['of']:,} "
            "when a part of it was held out; pass --data FILE"
        )
    _, rows = split_records(len(records), trained["eval_fraction"], trained["seed"])
    found = records.select(rows)
    before = held_out.get("sha256")  # early versions wrote none
    if before and before != (now := _digest(found, metadata, tokenizer)):
        without = f", or leave {', '.join(map(flag, given))} out" if given else ""
        raise DataError(
            f"the {len(rows):,} records that were held out of the training data {data} are not "
            f"what they were (checksum {before[:12]} -> {now[:12]}); pass --data FILE{without}"
        )
    return found


def _digest(records: datasets.Dataset, metadata: CheckpointConfig, tokenizer: Any) -> str:
    """As the training computed it: of what it rendered, at its own lengths."""
    trained = metadata.settings
    names = ("max_source_length", "max_target_length", "truncation")
    lengths = Lengths(*(trained[name] for name in names))
    generation = Generation(metadata.prompt_format)
    examples, _ = render_examples(records, tokenizer, generation, lengths)
    return digest_examples(examples)
