"""What the commands show in the terminal: progress on stderr, results on stdout."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ptune.metrics import METRICS

if TYPE_CHECKING:
    from typing_extensions import Self

    from ptune.evaluate import EvalResult
    from ptune.preview import LengthReport, Preview
    from ptune.prompt import Example
    from ptune.train import TrainResult, TrainSummary

_MEGABYTE = 10**6

# No markup: a path may have [brackets].
# Of several processes on several cards, the first one speaks.
_quiet = os.environ.get("RANK", "0") != "0"
out = Console(highlight=False, markup=False, quiet=_quiet)
err = Console(stderr=True, highlight=False, markup=False, quiet=_quiet)


def warn(text: str) -> None:
    """Say something that deserves attention but stops nothing."""
    err.print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show that something is going on while the block runs."""
    with err.status(what):
        yield


def _progress() -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
    )


class ProgressView:
    """A sign of life, then a bar; a context manager, so that the terminal is left in order."""

    def __init__(self, preparing: str = "Reading data, loading the model") -> None:
        self.preparing = err.status(preparing)
        self.progress = _progress()
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        """Show that something is going on; the bar appears with the first phase."""
        self.preparing.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal in order."""
        self.preparing.stop()
        self.progress.stop()

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """Begin a new bar."""
        self.preparing.stop()
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(name, total=total, completed=done, note="")
        self.progress.start()

    def advanced(self, done: int) -> None:
        """Move the bar."""
        if self.task is not None:
            self.progress.update(self.task, completed=done)

    def wrote(self, done: int, total: int) -> None:
        """Move the bar of files being written; both counts are bytes."""
        if self.task is None:
            self.phase("Writing MB", total // _MEGABYTE)
        self.advanced(done // _MEGABYTE)


class TrainView(ProgressView):
    """The summary, a bar with loss and rate, and without a terminal a line per log entry."""

    def started(self, summary: TrainSummary) -> None:
        """Show what the run is about to do."""
        self.preparing.stop()
        share = f"{summary.trainable / summary.parameters:.2%}"
        rows = {
            "model": f"{summary.model} ({summary.generation.value}), {summary.dtype} "
            f"on {summary.device}",
            "trainable": f"{summary.trainable:,} of {summary.parameters:,} parameters ({share})",
            "records": f"{summary.records:,}",
            "steps": f"{summary.max_steps:,} of {summary.batch_size} records "
            f"({summary.micro_batch_size} at once), {summary.epochs:.2f} epochs",
            "output": str(summary.output),
        }
        if summary.resumed_from:
            rows["resumed"] = summary.resumed_from.name
        grid = Table.grid(padding=(0, 2))
        for name, value in rows.items():
            grid.add_row(Text(name, style="dim"), Text(value))
        err.print(grid)
        if summary.skipped:
            warn(f"{len(summary.skipped)} bad records left out, first: {summary.skipped[0]}")
        if cut := str(summary.truncation):
            warn(f"{cut}; see `ptune preview` for lengths that fit")
        self.phase("Training", summary.max_steps)

    def step(self, step: int, max_steps: int) -> None:
        """Move the bar."""
        self.advanced(step)

    def logged(self, entry: dict[str, float]) -> None:
        """Show the newest numbers."""
        if "eval_loss" in entry:
            err.print(f"step {entry['step']}: eval_loss {entry['eval_loss']:.4f}")
            return
        note = f"loss {entry['loss']:.4f}  {entry['samples_per_second']:.1f} records/s"
        if self.task is not None:
            self.progress.update(self.task, note=note)
        if not err.is_terminal:
            err.print(f"step {entry['step']}: {note}")


def show_training(result: TrainResult) -> None:
    """Say where the prefix is, and what comes next."""
    if result.interrupted:
        err.print(
            f"stopped after step {result.steps}, saved in {result.checkpoint}; "
            "go on with the same command and --resume",
            soft_wrap=True,
        )
        return
    out.print(f"prefix saved in {result.output} after {result.steps} steps", soft_wrap=True)
    out.print(f"next: ptune eval --checkpoint {result.output}", style="dim", soft_wrap=True)


def show_scores(scores: Mapping[str, float]) -> None:
    """A table of the four metrics."""
    table = Table()
    for name in METRICS:
        table.add_column(name, justify="right")
    table.add_row(*(f"{scores[name]:.2f}" for name in METRICS))
    out.print(table)


def show_evaluation(result: EvalResult, as_json: bool) -> None:
    """The scores of an evaluation and where everything is written."""
    scores = result.scores
    if as_json:
        out.print_json(json.dumps(scores))
        return
    show_scores(scores)
    out.print(
        f"loss {scores['loss']:.4f}, {scores['samples']:.0f} records, "
        f"{scores['empty_predictions']:.0f} empty predictions, "
        f"{scores['samples_per_second']:.1f} records/s"
    )
    if result.skipped:
        warn(f"{len(result.skipped)} bad records left out, first: {result.skipped[0]}")
    out.print(f"written to {result.output}", soft_wrap=True)


def show_preview(preview: Preview, count: int) -> None:
    """Records token by token, then the lengths of all."""
    for row, example in preview.examples(count):
        out.rule(Text(f"record {row['source']}"))
        _show_tokens(preview, example)
    out.rule("lengths in tokens")
    _show_lengths(preview.lengths_of_all(), preview)


def _show_tokens(preview: Preview, example: Example) -> None:
    table = Table("position", "id", "token", "loss")
    for position, (token_id, token, learnt) in enumerate(preview.tokens(example)):
        style = "bold green" if learnt else "dim"
        mark = "yes" if learnt else ""
        table.add_row(str(position), str(token_id), Text(token), mark, style=style)
    out.print(table)


def _show_lengths(report: LengthReport, preview: Preview) -> None:
    table = Table("side", *(f"{p} %" for p in report.source), "limit", "suggested")
    limits = preview.lengths
    for side, percentiles, limit, suggested in (
        ("prompt", report.source, limits.max_source_length, report.suggested_source),
        ("response", report.target, limits.max_target_length, report.suggested_target),
    ):
        table.add_row(side, *(str(n) for n in percentiles.values()), str(limit), str(suggested))
    out.print(table)
    share = report.truncated / report.records
    out.print(
        f"{report.truncated} of {report.records} records ({share:.1%}) are cut at these limits"
    )
    if report.truncated:
        out.print(
            f"99 % fit with --max-source-length {report.suggested_source} "
            f"--max-target-length {report.suggested_target}"
        )
    if skipped := preview.loaded.skipped:
        warn(f"{len(skipped)} bad records left out, first: {skipped[0]}")
