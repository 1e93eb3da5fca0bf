"""From records to padded batches: rendering, what was cut, and the collators."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow
import pyarrow.compute
import torch
from torch import Tensor

from ptune.base.folder import Generation
from ptune.data.messages import ASSISTANT, Message
from ptune.data.prompt import Conversation, Lengths, render
from ptune.data.prompt_source import IGNORE_INDEX

# Of rendered records.  The last five say what was cut; training does not see them.
EXAMPLE_SCHEMA = pyarrow.schema(
    [
        ("input_ids", pyarrow.list_(pyarrow.int32())),
        ("labels", pyarrow.list_(pyarrow.int32())),
        ("length", pyarrow.int32()),
        ("turns_dropped", pyarrow.bool_()),
        ("context_cut", pyarrow.bool_()),
        ("prompt_cut", pyarrow.bool_()),
        ("response_cut", pyarrow.bool_()),
        ("without_labels", pyarrow.bool_()),
    ]
)
_RENDERED_AT_ONCE = 1000


@dataclass(frozen=True)
class Truncation:
    """What did not fit.

    Attributes:
        records: how many there are.
        turns_dropped: records that lost earlier turns.
        prompts_cut: records whose prompt lost tokens, after the whole context.
        responses_cut: records whose response lost tokens.
        without_labels: records of which nothing is left to learn.
        contexts_cut: records whose context lost tokens.
    """

    records: int
    turns_dropped: int
    prompts_cut: int
    responses_cut: int
    without_labels: int = 0
    contexts_cut: int = 0

    def __str__(self) -> str:
        """One line for people; empty when everything fits."""
        parts = [
            (self.turns_dropped, "lost earlier turns"),
            (self.contexts_cut, "have their context cut"),
            (self.prompts_cut, "have their prompt cut"),
            (self.responses_cut, "have their response cut"),
            (
                self.without_labels,
                "have no label left and do not count: "
                "use --truncation turns or a larger --max-source-length",
            ),
        ]
        return ", ".join(
            f"{count} of {self.records} records ({count / self.records:.1%}) {what}"
            for count, what in parts
            if count
        )


def conversation(row: dict[str, Any], with_response: bool = True) -> Conversation:
    """Take a conversation out of a row of `read_records`."""
    *messages, response = (Message(**said) for said in row["messages"])
    return Conversation(tuple(messages), response if with_response else None)


def asked_last(row: dict[str, Any]) -> str:
    """What the answer of a row of `read_records` is an answer to."""
    before: Iterator[str] = (m["content"] for m in row["messages"][::-1] if m["role"] != ASSISTANT)
    return next(before)


def _conversations(rows: pyarrow.ListArray) -> Iterator[Conversation]:
    """As `conversation` of each row, but without a dictionary for each message."""
    fields = [column.to_pylist() for column in rows.flatten().flatten()]
    messages = map(Message, *fields)
    for length in rows.value_lengths().to_pylist():
        *earlier, response = itertools.islice(messages, length)
        yield Conversation(tuple(earlier), response)


def render_examples(
    records: datasets.Dataset, tokenizer: Any, generation: Generation, lengths: Lengths
) -> tuple[datasets.Dataset, Truncation]:
    """Render every record into a training example, in memory.

    Args:
        records: from `read_records`.
        tokenizer: from `load_tokenizer`.
        generation: whose prompt to use.
        lengths: room for both sides.

    Returns:
        A data set with `input_ids`, `labels` and `length`, in the order of the records and without
        those that have no label left, and what was cut.
    """
    return split_truncation(render_records(records, tokenizer, generation, lengths))


def render_records(
    records: datasets.Dataset, tokenizer: Any, generation: Generation, lengths: Lengths
) -> datasets.Dataset:
    """Render every record in memory, those without labels too, with the marks of what was cut."""
    batches = render_batches(records, tokenizer, generation, lengths)
    table = pyarrow.Table.from_batches(batches, EXAMPLE_SCHEMA)
    return datasets.Dataset(table, fingerprint="rendered")


def render_batches(
    records: datasets.Dataset, tokenizer: Any, generation: Generation, lengths: Lengths
) -> Iterator[pyarrow.RecordBatch]:
    """Render records piece by piece, so that they need not be in memory all at once.

    Args:
        records: from `read_records`.
        tokenizer: from `load_tokenizer`.
        generation: whose prompt to use.
        lengths: room for both sides.

    Yields:
        Rows of `EXAMPLE_SCHEMA`, in the order of the records.
    """
    for table in records.with_format("arrow").iter(batch_size=_RENDERED_AT_ONCE):
        said = _conversations(table["messages"].combine_chunks())
        rendered = [render(tokenizer, generation, each, lengths) for each in said]
        yield pyarrow.RecordBatch.from_pydict(
            {
                "input_ids": [example.input_ids for example in rendered],
                "labels": [example.labels for example in rendered],
                "length": [len(example.input_ids) for example in rendered],
                "turns_dropped": [example.turns_dropped > 0 for example in rendered],
                "context_cut": [example.context_cut is not None for example in rendered],
                "prompt_cut": [example.prompt_cut for example in rendered],
                "response_cut": [example.response_cut for example in rendered],
                "without_labels": [not has_labels(example.labels) for example in rendered],
            },
            EXAMPLE_SCHEMA,
        )


def split_truncation(
    rendered: datasets.Dataset, rows: Sequence[int] | None = None
) -> tuple[datasets.Dataset, Truncation]:
    """Part rendered records, with the columns of `EXAMPLE_SCHEMA`, from the marks of what was cut.

    Args:
        rendered: all records.
        rows: indices of those that are wanted; None wants all.

    Returns:
        As of `render_examples`.
    """
    cut = ["turns_dropped", "prompt_cut", "response_cut", "without_labels", "context_cut"]
    # By Arrow: a column of the library is read row by row, each through Python.
    marks = rendered.data.table.select(cut)
    wanted = None if rows is None else pyarrow.array(rows, pyarrow.int64())
    if wanted is not None:
        marks = marks.take(wanted)
    counts = [pyarrow.compute.sum(marks[name], min_count=0).as_py() for name in cut]
    truncation = Truncation(len(marks), *counts)
    if truncation.without_labels:
        learnt = pyarrow.compute.invert(marks["without_labels"]).combine_chunks()
        positions = pyarrow.compute.indices_nonzero(learnt)
        wanted = positions if wanted is None else wanted.take(positions)
    if wanted is not None:
        rendered = rendered.select(wanted.to_pylist())
    return rendered.remove_columns(cut), truncation


def digest_ids(ids: Sequence[int]) -> str:
    """SHA-256 of the ids of a text, in hexadecimal."""
    return hashlib.sha256(str(tuple(ids)).encode()).hexdigest()


def digest_examples(examples: datasets.Dataset) -> str:
    """Tell rendered examples apart by what is learnt from them: ids and labels, in their order.

    Returns:
        A SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256()
    for table in examples.with_format("arrow").iter(batch_size=_RENDERED_AT_ONCE):
        for name in ("input_ids", "labels"):
            column = table[name].combine_chunks()
            digest.update(column.value_lengths().to_numpy().astype("int64").tobytes())
            digest.update(column.flatten().to_numpy().astype("int64").tobytes())
    return digest.hexdigest()


def has_labels(labels: Sequence[int]) -> bool:
    """Whether a record has a label that some token predicts; the first one nobody does."""
    return any(label != IGNORE_INDEX for label in labels[1:])


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
        return self._pad(examples, max(len(e["input_ids"]) for e in examples))

    def _pad(self, examples: Sequence[dict[str, Any]], width: int) -> dict[str, Tensor]:
        return {
            "input_ids": _pad_right([e["input_ids"] for e in examples], self.pad_token_id, width),
            "labels": _pad_right([e["labels"] for e in examples], IGNORE_INDEX, width),
        }


class StepCollator(TrainCollator):
    """Batches a process's share of an effective batch so that it can be cut into micro-batches.

    Args:
        pad_token_id: of the tokenizer.
        process: of this process.
        processes: of the run; each takes every so-manieth record.
    """

    def __init__(self, pad_token_id: int, process: int = 0, processes: int = 1) -> None:
        super().__init__(pad_token_id)
        self.process = process
        self.processes = processes

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Batch examples, the longest first: memory runs out early, and little padding is left.

        Args:
            examples: the effective batch, of all processes.

        Returns:
            As of `TrainCollator`, and on the CPU `lengths`, the columns that each row needs,
            `places`, where it is in the effective batch, and `num_items`, the label tokens of the
            whole effective batch.  A process for which no record is left gets one without labels.
        """
        examples = sorted(examples, key=lambda e: -len(e["input_ids"]))
        predicted = [e["labels"][1:] for e in examples]  # no token predicts the first
        num_items = sum(len(labels) - labels.count(IGNORE_INDEX) for labels in predicted)
        places = list(range(self.process, len(examples), self.processes))
        rows = [examples[place] for place in places]
        if not rows:
            shortest = examples[-1]
            rows, places = [{**shortest, "labels": [IGNORE_INDEX] * len(shortest["labels"])}], [0]
        lengths = [len(e["input_ids"]) for e in rows]
        batch = self._pad(rows, lengths[0])
        return {**batch, "lengths": lengths, "places": places, "num_items": num_items}


def pad_left(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Batch prompts to generate from.

    Returns:
        Ids and attention mask, both `[B, S]`, every prompt ending at the last column.
    """
    longest = max(map(len, prompts))
    ids = [[pad_token_id] * (longest - len(p)) + list(p) for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _pad_right(rows: Sequence[Sequence[int]], value: int, width: int) -> Tensor:
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
