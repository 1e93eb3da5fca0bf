"""What `ptune predict` has come to, and whom it tells of its progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from ptune.commands.predict.answerer import ANSWER_CUT, CONTEXT_CUT, PROMPT_CUT, TURNS_CUT
from ptune.data.examples import Truncation
from ptune.evaluation.evaluate import EvalReporter


@dataclass
class Counts:
    """What the lines of answers sum up to.

    Attributes:
        records: lines.
        labelled: of them with a response to compare the answer with.
        empty_predictions: answers without a word.
        new_tokens: of all answers.
        turns_dropped: records that lost earlier turns.
        contexts_cut: records whose context lost tokens.
        prompts_cut: records whose prompt lost tokens.
        answers_cut: answers that ended at the most tokens they may have.
    """

    records: int = 0
    labelled: int = 0
    empty_predictions: int = 0
    new_tokens: int = 0
    turns_dropped: int = 0
    contexts_cut: int = 0
    prompts_cut: int = 0
    answers_cut: int = 0

    def add_line(self, line: Mapping[str, Any]) -> None:
        """Count a line from `Answerer.answer`."""
        cut = line.get("cut", ())
        self.records += 1
        self.labelled += "labels" in line
        self.empty_predictions += not line["predict"]
        self.new_tokens += line["tokens"]
        self.turns_dropped += TURNS_CUT in cut
        self.contexts_cut += CONTEXT_CUT in cut
        self.prompts_cut += PROMPT_CUT in cut
        self.answers_cut += ANSWER_CUT in cut

    def add(self, other: Counts) -> None:
        """Count what another has counted."""
        for name, count in asdict(other).items():
            setattr(self, name, getattr(self, name) + count)


@dataclass(frozen=True)
class PredictResult:
    """What the folder of answers holds.

    Attributes:
        output: the folder.
        files: how many of it belong to the data.
        counts: of all of them.
        answered: records that this run has answered; the others were there already.
        new_tokens: of these.
        seconds: that it took, from the first question on.
        lost_workers: that have died on the way.
        skipped: one message for each bad record that was left out.
        notices: what the user should know of model and data.
    """

    output: Path
    files: int
    counts: Counts
    answered: int
    new_tokens: int
    seconds: float
    lost_workers: int
    skipped: tuple[str, ...]
    notices: tuple[str, ...]

    @property
    def facts(self) -> dict[str, int | float | None]:
        """Numbers by name, for JSON; speeds are None where this run has answered nothing."""
        speeds = {"samples_per_second": self.answered, "new_tokens_per_second": self.new_tokens}
        return {
            "files": self.files,
            **asdict(self.counts),
            "answered": self.answered,
            "lost_workers": self.lost_workers,
            **{
                name: round(count / self.seconds, 3) if self.answered else None
                for name, count in speeds.items()
            },
        }

    @property
    def cuts(self) -> Iterator[str]:
        """What did not fit, in a line for people each."""
        of, cut = self.counts.records, self.counts
        prompts = Truncation(of, cut.turns_dropped, cut.prompts_cut, 0, 0, cut.contexts_cut)
        if said := str(prompts):
            yield f"{said}; a larger --max-source-length leaves more of them"
        if cut.answers_cut:
            yield (
                f"{cut.answers_cut} of {of} answers ({cut.answers_cut / of:.1%}) end at their most "
                "tokens; a larger --max-new-tokens lets them go on"
            )


class PredictReporter(EvalReporter, Protocol):
    """Interface for the progress of `ptune predict`; the command line implements it."""

    def noticed(self, text: str) -> None:
        """A warning."""
