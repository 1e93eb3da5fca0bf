"""What the commands show in the terminal: progress on stderr, results on stdout."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from types import TracebackType
from typing import TYPE_CHECKING, Any

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

from ptune.config.shared_settings import LORA
from ptune.evaluation.metrics import METRICS
from ptune.files.json_text import to_json
from ptune.parallel.processes import is_first_process

if TYPE_CHECKING:
    from typing_extensions import Self

    from ptune.commands.doctor.check import Check
    from ptune.commands.estimate import Estimate, Row
    from ptune.commands.predict.result import PredictResult
    from ptune.commands.preview import LengthReport, Preview, Token
    from ptune.commands.tune.result import TrialResult, TuneResult
    from ptune.config.tune_settings import Choice
    from ptune.evaluation.evaluate import EvalResult
    from ptune.training.summary import TrainResult, TrainSummary

_MEGABYTE = 10**6

# No markup: a path may have [brackets].
# Of several processes on several cards, the first one speaks.
_quiet = not is_first_process()
out = Console(highlight=False, markup=False, quiet=_quiet)
err = Console(stderr=True, highlight=False, markup=False, quiet=_quiet)


def print_json(value: Any) -> None:
    """Print JSON on several lines."""
    out.print_json(to_json(value), ensure_ascii=_lacks_characters())


def print_json_line(value: Any) -> None:
    """Print JSON on a line of its own."""
    print(to_json(value, ensure_ascii=_lacks_characters()))


def _lacks_characters() -> bool:
    """Whether stdout has an encoding in which a character may have to be written as JSON does."""
    return not (sys.stdout.encoding or "").lower().startswith("utf")


def warn(text: str) -> None:
    """Say something that deserves attention but stops nothing."""
    err.print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)


def show_data_notices(skipped: Sequence[str], notices: Sequence[str]) -> None:
    """Say what of the data training or evaluation does not see."""
    if skipped:
        warn(f"{len(skipped)} bad records left out, first: {skipped[0]}")
    for notice in notices:
        warn(notice)


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
            "model": f"{summary.model} ({summary.generation.value}), {summary.precision}",
            "trainable": f"{summary.trainable:,} of {summary.parameters:,} parameters ({share})",
            "records": f"{summary.records:,}"
            + (f", and {summary.dev_records:,} to measure by" if summary.dev_records else ""),
            "steps": f"{summary.max_steps:,} of {summary.batch_size} records "
            f"({summary.micro_batch_size} at once), {summary.epochs:.2f} epochs",
            "computed": f"seed {summary.seed}, "
            + ", ".join(f"{name} {value}" for name, value in summary.environment.items()),
            "output": str(summary.output),
        }
        if summary.resumed_from:
            rows["resumed"] = summary.resumed_from.name
        grid = Table.grid(padding=(0, 2))
        for name, value in rows.items():
            grid.add_row(Text(name, style="dim"), Text(value))
        err.print(grid)
        show_data_notices(summary.skipped, summary.notices)
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

    def noticed(self, text: str) -> None:
        """Show it above the bar."""
        warn(text)


class TuneView(ProgressView):
    """A bar for each trial, and a line for how it has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.name = ""
        self.said: set[str] = set()

    def trial_began(self, number: int, trials: int, choice: Choice) -> None:
        """Say what it tries."""
        self.name = f"trial {number}"
        err.print(
            f"{self.name} ({number + 1} of {trials}): learning rate {choice.learning_rate:.3g}, "
            f"length {choice.pre_seq_len}, start {choice.start}"
        )

    def started(self, summary: TrainSummary) -> None:
        """Show its steps; what is to be said of the data is said once."""
        for notice in summary.notices:
            self.noticed(notice)
        if summary.skipped:
            self.noticed(
                f"{len(summary.skipped)} bad records left out, first: {summary.skipped[0]}"
            )
        if cut := str(summary.truncation):
            self.noticed(f"{cut}; see `ptune preview` for lengths that fit")
        self.phase(self.name, summary.max_steps)

    def step(self, step: int, max_steps: int) -> None:
        """Move the bar."""
        self.advanced(step)

    def logged(self, entry: dict[str, float]) -> None:
        """Show the newest eval_loss."""
        if "eval_loss" in entry and self.task is not None:
            self.progress.update(self.task, note=f"eval_loss {entry['eval_loss']:.4f}")

    def noticed(self, text: str) -> None:
        """Show it above the bar, unless an earlier trial has said the same."""
        if text not in self.said:
            self.said.add(text)
            warn(text)

    def trial_ended(self, trial: TrialResult) -> None:
        """Say how."""
        err.print(f"{self.name}: {_outcome(trial)}", soft_wrap=True)


class PredictView(ProgressView):
    """A bar of records, and what happens on the way."""

    def noticed(self, text: str) -> None:
        """Show it above the bar."""
        warn(text)


def _outcome(trial: TrialResult) -> str:
    if trial.reason:
        return trial.reason
    end = "eval_loss" if trial.finished else f"given up after step {trial.steps}, eval_loss"
    return f"{end} {trial.eval_loss:.4f}"


def show_tuning(result: TuneResult) -> None:
    """A table of the trials, and what comes next."""
    table = Table("trial", "learning rate", "length", "start", "eval_loss", "step", "")
    for trial in result.trials:
        loss = f"{trial.eval_loss:.4f}" if trial.eval_loss is not None else "-"
        best = result.best is not None and trial.number == result.best.number
        said = "best" if best else trial.reason or ("" if trial.finished else "given up")
        choice = trial.choice
        cells = (f"{choice.learning_rate:.3g}", str(choice.pre_seq_len), choice.start, loss)
        style = "bold green" if best else "" if trial.finished else "dim"
        table.add_row(str(trial.number), *cells, str(trial.steps), Text(said), style=style)
    if result.trials:
        out.print(table)
    if result.stopped_by is not None:
        err.print("stopped; the same command goes on from there")
    if result.best is not None:
        out.print(f"next: ptune train --config {result.config}", style="dim", soft_wrap=True)


def show_training(result: TrainResult) -> None:
    """Say where the prefix is, and what comes next."""
    if result.stopped_by is not None:
        saved = f", saved in {result.checkpoint}" if result.checkpoint != result.output else ""
        err.print(
            f"stopped after step {result.steps}{saved}; the same command goes on from there",
            soft_wrap=True,
        )
        return
    if result.before:
        longer = "a larger --max-steps or --epochs"
        if result.early:
            longer = "a larger --early-stopping, or none,"
        err.print(
            f"this training is finished already, after {result.steps} steps; {longer} goes on "
            "with it, --fresh begins anew",
            soft_wrap=True,
        )
    best = f" of step {result.best_step}, the best," if result.best_step else ""
    after = "" if result.before else f" after {result.steps} steps"
    if result.early and not result.before:
        after += ", stopped early"
    out.print(f"{result.noun}{best} saved in {result.output}{after}", soft_wrap=True)
    out.print(f"next: ptune eval --checkpoint {result.output}", style="dim", soft_wrap=True)


def show_scores(scores: Mapping[str, float | None]) -> None:
    """A table of the four metrics."""
    table = Table()
    for name in METRICS:
        table.add_column(name, justify="right")
    table.add_row(*(f"{scores[name] or 0.0:.2f}" for name in METRICS))
    out.print(table)


def show_evaluation(result: EvalResult, as_json: bool) -> None:
    """The scores of an evaluation and where everything is written."""
    scores = result.scores
    show_data_notices(result.skipped, result.notices)
    if as_json:
        print_json(scores)
        return
    show_scores(scores)
    facts = {
        "loss {:.4f}": scores["loss"],
        "{:.0f} records": scores["samples"],
        "{:.0f} empty predictions": scores["empty_predictions"],
        "{:.1f} records/s": scores["samples_per_second"],
    }
    out.print(", ".join(fact.format(n) for fact, n in facts.items() if n is not None))
    if scores["loss"] is None:
        warn(
            "there is no loss, for no record has a label left; "
            "use --truncation turns or a larger --max-source-length"
        )
    out.print(f"written to {result.output}", soft_wrap=True)


def show_predictions(result: PredictResult, as_json: bool) -> None:
    """What was answered, what was cut, and where everything is written."""
    show_data_notices(result.skipped, result.notices)
    for cut in result.cuts:
        warn(cut)
    facts = result.facts
    if as_json:
        print_json(facts)
        return
    counts = result.counts
    said = [f"{counts.records:,} records of {result.files:,} files"]
    if result.answered < counts.records:
        said.append(f"{result.answered:,} of them answered now")
    said.append(f"{counts.empty_predictions:,} empty predictions")
    if result.answered:
        records, tokens = facts["samples_per_second"], facts["new_tokens_per_second"]
        said.append(f"{records:,.1f} records/s, {tokens:,.1f} tokens/s")
    if result.lost_workers:
        said.append(f"{result.lost_workers} workers lost on the way")
    out.print(", ".join(said), soft_wrap=True)
    out.print(f"written to {result.output}", soft_wrap=True)


def show_preview(preview: Preview, count: int) -> None:
    """Records token by token, then the lengths of all."""
    for row, example in preview.examples(count):
        out.rule(Text(f"record {row['source']}"))
        _show_tokens(preview.tokens(row, example))
        if example.context_cut:
            out.print(f"the context is cut: {example.context_cut}", soft_wrap=True)
    out.rule("lengths in tokens")
    _show_lengths(preview.lengths_of_all(), preview)


def _show_tokens(tokens: Sequence[Token]) -> None:
    table = Table("position", "id", "token", "message", "loss")
    for position, token in enumerate(tokens):
        style = "bold green" if token.learnt else "dim"
        mark = "yes" if token.learnt else ""
        cells = (str(position), str(token.id), Text(token.text), token.message, mark)
        table.add_row(*cells, style=style)
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
    cut = (
        f"{report.truncated} of {report.records} records ({report.truncated / report.records:.1%})"
    )
    out.print(f"{cut} are cut at these limits")
    if report.truncated:
        suggested = report.suggested_source + report.suggested_target
        beyond = preview.context is not None and suggested > preview.context
        more = f", more than the context of {preview.context:,} tokens" if beyond else ""
        out.print(
            f"99 % fit with --max-source-length {report.suggested_source} "
            f"--max-target-length {report.suggested_target}{more}"
        )
    if report.contexts_cut:
        out.print(f"{report.contexts_cut} of {report.records} records have their context cut")
    if report.without_labels:
        out.print(
            f"{report.without_labels} of {report.records} records have no label left: "
            "use --truncation turns or a larger --max-source-length"
        )
    show_data_notices(preview.loaded.skipped, preview.loaded.notices)


_STATUS_STYLES = {"ok": "green", "warning": "yellow", "failure": "bold red"}


def show_doctor(checks: Sequence[Check], as_json: bool) -> None:
    """A line for each check, group by group, then what mends those that are not ok."""
    from ptune.commands.doctor.check import overall

    if as_json:
        found = {"status": overall(checks), "checks": [dataclasses.asdict(c) for c in checks]}
        print_json(found)
        return
    width = max(len(check.name) for check in checks)
    for group, lines in groupby(checks, key=lambda check: check.group):
        out.print(group, style="bold")
        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=max(map(len, _STATUS_STYLES)))
        grid.add_column(width=width)
        grid.add_column(overflow="fold")
        for check in lines:
            status = check.status.value
            said = Text(check.message)
            grid.add_row(Text(status, style=_STATUS_STYLES[status]), Text(check.name), said)
        out.print(grid)
    _show_mending([check for check in checks if check.mend])


def _show_mending(checks: Sequence[Check]) -> None:
    if not checks:
        out.print("\nAll is well.")
        return
    out.print("\nWhat to do", style="bold")
    about: dict[str, list[str]] = {}
    for check in checks:
        about.setdefault(check.mend, []).append(f"{check.status.value}, {check.name}")
    for mend, names in about.items():
        out.print(Text(f"{'; '.join(names)}:"), soft_wrap=True)
        out.print(Text(f"  {mend}", style="cyan"), soft_wrap=True)  # so that it can be copied


_GIGABYTE = 10**9
_PARTS = {
    "weights": "the base model, frozen",
    "prefix": "in training with gradient and AdamW's moments",
    "activations": "what layers keep for the backward",
    "logits": "scores over the vocabulary",
    "cache": "keys and values; in training the prefix of each record",
    "working": "for a moment, inside a layer or the optimizer",
}


def show_estimate(estimate: Estimate, as_json: bool) -> None:
    """Every way to use a model with what it takes, the parts of one, and what to do."""
    if as_json:
        print_json(estimate.to_json())
        return
    settings, card = estimate.settings, estimate.card
    facts = {
        "model": f"{settings.model}, {estimate.parameters / 10**6:,.0f} million parameters "
        f"({estimate.source})",
        **_beside(estimate),
        "training": f"{settings.max_source_length} + {estimate.target_length} tokens, "
        f"batch of {settings.batch_size}",
        "chat": f"{settings.chat_length:,} tokens",
        "card": f"{card.name}, {card.size / _GIGABYTE:.1f} GB" if card else "none here; see --card",
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        grid.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
    out.print(grid)
    _show_ways(estimate)
    _show_parts(estimate)
    _show_serving(estimate)
    _show_advice(estimate)


def _beside(estimate: Estimate) -> dict[str, str]:
    """What is trained, under its name."""
    settings, count = estimate.settings, f"{estimate.trainable_parameters:,} parameters"
    if settings.method == LORA:
        return {"LoRA": f"rank {settings.lora_rank}, {settings.lora_target}, {count}"}
    return {"prefix": f"{settings.pre_seq_len} tokens, {count}"}


def _show_ways(estimate: Estimate) -> None:
    table = Table("weights", "use", "records at once", "memory", "smallest card")
    for column in table.columns[2:]:
        column.justify = "right"
    if estimate.card:
        table.add_column("fits")
    for row in estimate.rows:
        checkpointed = "--gradient-checkpointing" in row.options
        cells = [
            row.weights,
            f"{row.use}, checkpointing" if checkpointed else row.use,
            str(row.micro_batch or 1),
            f"{row.needed / _GIGABYTE:.1f} GB",
            f"{row.card_size} GB" if row.card_size else "none",
        ]
        if estimate.card:
            cells.append("yes" if row.fits else "no")
        table.add_row(*cells, style="dim" if row.fits is False else None)
    out.print(table)
    from ptune.commands.estimate import CONTEXT_BYTES

    out.print(
        f"memory: with {CONTEXT_BYTES / 10**9:.1f} GB for the CUDA context, and a tenth of what is "
        "not weights for gaps"
    )


def _show_parts(estimate: Estimate) -> None:
    rows = {"train": estimate.train, "chat": estimate.chat}
    out.print(f"\nGB by part: {_way(estimate.train)}", style="bold")
    table = Table("part", *rows, "what it is")
    for column in table.columns[1:-1]:
        column.justify = "right"
    for name, meaning in _PARTS.items():
        sizes = [getattr(row.memory, name) for row in rows.values()]
        shown = "LoRA" if name == "prefix" and estimate.settings.method == LORA else name
        table.add_row(shown, *(f"{size / _GIGABYTE:.2f}" for size in sizes), meaning)
    for name, sizes in {
        "total": [row.memory.total for row in rows.values()],
        "of a card": [row.needed for row in rows.values()],
    }.items():
        meaning = "as torch counts it" if name == "total" else "with context and gaps"
        table.add_row(name, *(f"{size / _GIGABYTE:.2f}" for size in sizes), meaning, style="bold")
    out.print(table)
    out.print(
        f"CPU memory: {estimate.loading / _GIGABYTE:.1f} GB while the weights go to a card; "
        f"{estimate.on_cpu / _GIGABYTE:.1f} GB to train without one"
    )


def _show_serving(estimate: Estimate) -> None:
    settings, one = estimate.settings, estimate.services[0]
    lora = settings.method == LORA  # of which a server has one
    size = f"{one.prefix / 10**6:,.1f} MB"
    prefix = "" if lora else f"a prefix of {settings.pre_seq_len} tokens {size}, "
    out.print("\nServing", style="bold")
    out.print(
        f"A token takes {one.position / 1000:,.1f} kB of the KV cache, {prefix}steps of "
        f"{settings.max_slots} slots {one.working / _GIGABYTE:.2f} GB"
    )
    if estimate.card is None:
        return
    table = Table(
        *("weights", "tokens in the KV cache", f"requests of {settings.chat_length:,} at once"),
        *(() if lora else ("prefixes beside one",)),
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for service in estimate.services:
        found = (service.tokens, service.requests, service.prefixes)[: 2 if lora else 3]
        style = None if service.requests else "dim"
        table.add_row(service.weights, *(f"{number or 0:,}" for number in found), style=style)
    out.print(table)


def _way(row: Row) -> str:
    records = "1 record" if row.micro_batch == 1 else f"{row.micro_batch} records"
    said = f"{row.weights} weights, {records} at once"
    return f"{said}, gradient checkpointing" if "checkpointing" in row.options else said


def _show_advice(estimate: Estimate) -> None:
    out.print("\nWhat to do", style="bold")
    if estimate.train.fits is False:
        needed = estimate.train.card_size
        out.print(
            "No way to train fits this card. The smallest needs "
            + (f"a card of {needed} GB. " if needed else "more than any card holds. ")
            + "What would save memory:"
        )
    elif estimate.card is None:
        out.print("Name a card, e.g. --card T4-16GB, to see what fits it. What saves memory:")
    else:
        out.print(Text(f"  {estimate.command}", style="cyan"), soft_wrap=True)
        return
    for option, size in estimate.savings:
        if size < _GIGABYTE // 20:
            continue
        out.print(f"  {option}  ({size / _GIGABYTE:.1f} GB)", soft_wrap=True)
    if estimate.settings.method == LORA:
        out.print("  a smaller --lora-rank, or fewer layers in --lora-target")
        return
    out.print(
        "  a smaller --pre-seq-len"
        + (", no --prefix-projection" * estimate.settings.prefix_projection)
    )
