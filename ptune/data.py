"""From records to padded batches: rendering, what was cut, and the collators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor

from ptune.base_model import Generation
from ptune.prompt import IGNORE_INDEX, Conversation, Lengths, render


@dataclass(frozen=True)
class Truncation:
    """What did not fit.

    Attributes:
        records: how many there are.
        turns_dropped: records that lost earlier turns.
        prompts_cut: records whose prompt lost tokens.
        responses_cut: records whose response lost tokens.
    """

    records: int
    turns_dropped: int
    prompts_cut: int
    responses_cut: int

    def __str__(self) -> str:
        """One line for people; empty when everything fits."""
        parts = [
            (self.turns_dropped, "lost earlier turns"),
            (self.prompts_cut, "have their prompt cut"),
            (self.responses_cut, "have their response cut"),
        ]
        return ", ".join(
            f"{count} of {self.records} records ({count / self.records:.1%}) {what}"
            for count, what in parts
            if count
        )


def conversation(row: dict[str, Any], with_response: bool = True) -> Conversation:
    """Take a conversation out of a row of `read_records`."""
    response = row["response"] if with_response else None
    return Conversation(row["prompt"], response, row["history"], row["system"])


def render_examples(
    records: datasets.Dataset, tokenizer: Any, generation: Generation, lengths: Lengths
) -> tuple[datasets.Dataset, Truncation]:
    """Render every record into a training example.

    Args:
        records: from `read_records`.
        tokenizer: from `load_tokenizer`.
        generation: whose prompt to use.
        lengths: room for both sides.

    Returns:
        A data set with `input_ids`, `labels` and `length`, in the order of the records, and what
        was cut.
    """

    def render_row(row: dict[str, Any]) -> dict[str, Any]:
        example = render(tokenizer, generation, conversation(row), lengths)
        return {
            "input_ids": example.input_ids,
            "labels": example.labels,
            "length": len(example.input_ids),
            "turns_dropped": example.turns_dropped,
            "prompt_cut": example.prompt_cut,
            "response_cut": example.response_cut,
        }

    examples = records.map(
        render_row,
        remove_columns=records.column_names,
        desc="Rendering prompts",
        keep_in_memory=True,
        load_from_cache_file=False,
        # Hashing the tokenizer for a cache that is not used costs more than the rendering.
        new_fingerprint="rendered",
    )
    cut = ["turns_dropped", "prompt_cut", "response_cut"]
    counts = [sum(map(bool, examples[name])) for name in cut]
    return examples.remove_columns(cut), Truncation(len(examples), *counts)


class TrainCollator:
    """Pads examples at their end, to the longest of the batch."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Batch examples.

        Returns:
            `input_ids` and `labels`, both `[B, S]`.  No attention mask is needed: padding comes
            after everything that has a label.
        """
        return {
            "input_ids": _pad_right([e["input_ids"] for e in examples], self.pad_token_id),
            "labels": _pad_right([e["labels"] for e in examples], IGNORE_INDEX),
        }


class StepCollator(TrainCollator):
    """Batches the examples of an optimizer step so that they can be cut into micro-batches."""

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Batch examples, the longest first: memory runs out early, and little padding is left.

        Returns:
            As of `TrainCollator`, and `lengths`: the tokens of each row, on the CPU.
        """
        rows = sorted(examples, key=lambda e: -len(e["input_ids"]))
        return {**super().__call__(rows), "lengths": [len(e["input_ids"]) for e in rows]}


def pad_left(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Batch prompts to generate from.

    Returns:
        Ids and attention mask, both `[B, S]`, every prompt ending at the last column.
    """
    longest = max(map(len, prompts))
    ids = [[pad_token_id] * (longest - len(p)) + list(p) for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _pad_right(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])
