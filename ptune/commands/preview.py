"""`ptune preview`: what training will see of a data set, before any of it is trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ptune.base.context import context_length
from ptune.base.folder import Generation, find_base_model
from ptune.config.settings import PreviewSettings
from ptune.data.examples import conversation, has_labels
from ptune.data.prompt import Example, Lengths, default_target_length, render
from ptune.data.records import LoadedRecords, read_records
from ptune.data.tokenizer import build_tokenizer

PERCENTILES = (50, 90, 95, 99, 100)
_UNLIMITED = 1 << 30
# Of this many records, each of the two suggested lengths may cut one: both leave 99 % whole.
_ONE_CUT_OF = 200
_ROUND_TO = 16


@dataclass(frozen=True)
class LengthReport:
    """Lengths of a data set before anything is cut, and what the current limits do to it.

    Attributes:
        source: tokens of the prompt side, by percentile.
        target: tokens of the response side, by percentile.
        truncated: records that lose something at the current limits.
        without_labels: records of which nothing is left to learn at the current limits.
        contexts_cut: records whose context is cut at the current limits.
        records: how many there are.
        suggested_source: `--max-source-length` that leaves 99 % of the records whole, together
            with `suggested_target`.
        suggested_target: `--max-target-length` likewise.
    """

    source: dict[int, int]
    target: dict[int, int]
    truncated: int
    without_labels: int
    contexts_cut: int
    records: int
    suggested_source: int
    suggested_target: int


@dataclass(frozen=True)
class Token:
    """A token of an example.

    Attributes:
        id: in the vocabulary.
        text: how it is spelt.
        message: number and role of the message that it is of; empty for the frame around them.
        learnt: whether the loss looks at it.
    """

    id: int
    text: str
    message: str
    learnt: bool


class Preview:
    """A data set as `ptune train` would render it.

    Args:
        settings: all of them resolved.
    """

    def __init__(self, settings: PreviewSettings) -> None:
        base = find_base_model(settings.model, False, settings.prompt_format)
        self.generation = base.generation
        self.tokenizer = build_tokenizer(base)
        target = settings.max_target_length or default_target_length(self.generation)
        self.context = context_length(base.config)
        self.lengths = Lengths(settings.max_source_length, target, settings.truncation)
        columns = settings.columns
        self.loaded: LoadedRecords = read_records(
            settings.data, columns, settings.skip_bad_records, self.generation
        )

    @property
    def _is_first(self) -> bool:
        return self.generation is Generation.CHATGLM

    def examples(self, limit: int | None = None) -> Iterator[tuple[dict[str, Any], Example]]:
        """Yield rows of the data and what training sees of them.

        Args:
            limit: only the first records.
        """
        records = self.loaded.records
        for i in range(min(limit or len(records), len(records))):
            row = records[i]
            said = conversation(row)
            yield row, render(self.tokenizer, self.generation, said, self.lengths, trace=True)

    def tokens(self, row: dict[str, Any], example: Example) -> list[Token]:
        """Spell an example out.

        Args:
            row: of the data.
            example: what training sees of it.
        """
        roles = [f"{n} {said['role']}" for n, said in enumerate(row["messages"], 1)]
        spelled = [self.tokenizer.show_token(i) for i in example.input_ids]
        columns = (example.input_ids, spelled, example.owners, example.labels)
        return [
            Token(i, text, "" if owner is None else roles[owner], label >= 0)
            for i, text, owner, label in zip(*columns, strict=True)
        ]

    def lengths_of_all(self) -> LengthReport:
        """Measure every record."""
        whole = dataclasses.replace(
            self.lengths, max_source_length=_UNLIMITED, max_target_length=_UNLIMITED
        )
        sources, targets, truncated, without_labels, contexts_cut = [], [], 0, 0, 0
        for row in self.loaded.records:
            said = conversation(row)
            full = len(render(self.tokenizer, self.generation, said, whole).input_ids)
            asked = dataclasses.replace(said, response=None)
            source = len(render(self.tokenizer, self.generation, asked, whole).input_ids)
            sources.append(source - 1 if self._is_first else source)
            # Without the end token, which ChatGLM-6B counts and the others do not.
            targets.append(full - source + (1 if self._is_first else -1))
            limits = (self.lengths.max_source_length, self.lengths.max_target_length)
            if sources[-1] > limits[0] or targets[-1] > limits[1]:
                truncated += 1
                cut = render(self.tokenizer, self.generation, said, self.lengths)
                without_labels += not has_labels(cut.labels)
                contexts_cut += cut.context_cut is not None
        return LengthReport(
            source=_percentiles(sources),
            target=_percentiles(targets),
            truncated=truncated,
            without_labels=without_labels,
            contexts_cut=contexts_cut,
            records=len(sources),
            suggested_source=_suggest(sources),
            suggested_target=_suggest(targets),
        )


def _percentiles(lengths: list[int]) -> dict[int, int]:
    ordered = sorted(lengths)
    return {p: ordered[max(0, -(-len(ordered) * p // 100) - 1)] for p in PERCENTILES}


def _suggest(lengths: list[int]) -> int:
    needed = sorted(lengths)[-1 - len(lengths) // _ONE_CUT_OF]
    return -(-needed // _ROUND_TO) * _ROUND_TO
