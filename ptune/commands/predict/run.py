"""`ptune predict`: every record of many files answered once, by a run that may be interrupted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from ptune.commands.predict.output import Answers, check_output
from ptune.commands.predict.result import Counts, PredictReporter, PredictResult
from ptune.commands.predict.shards import (
    QuestionFile,
    Shard,
    find_questions,
    read_shards,
    survey,
)
from ptune.commands.predict.workers import Workers, open_workers
from ptune.config.predict_settings import PredictSettings
from ptune.data.records import Found, Reading
from ptune.data.schemas import Columns, check_columns
from ptune.evaluation.answering import Answering, find_answering, identity, with_weights
from ptune.files.lock import check_free, holding


class _Run:
    """The work that is left, and what has been done.

    Args:
        answers: in their folder.
        files: of questions.
        reading: how they are read.
        reporter: told of the progress.
    """

    def __init__(
        self,
        answers: Answers,
        files: list[QuestionFile],
        reading: Reading,
        reporter: PredictReporter,
    ) -> None:
        self.answers = answers
        self.counts = Counts()
        self.now = Counts()  # of this run
        self.began: float | None = None
        self._reading = reading
        self._reporter = reporter
        self._files = {file.target: file for file in files}
        self._missing: dict[str, set[int]] = {}
        done = 0
        for file in files:
            if (finished := answers.finished(file)) is not None:
                self.counts.add(finished)
                done += file.records
            else:
                missing = set(answers.missing(file))
                done += file.records - sum(file.size(number) for number in missing)
                self._missing[file.target] = missing
        self._advanced = done
        reporter.phase("Answering", sum(file.records for file in files), done)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be answered."""
        return not any(self._missing.values())

    def shards(self) -> Iterator[Shard]:
        """Read what is missing, file by file."""
        for target, missing in list(self._missing.items()):
            if missing:
                self.began = self.began or time.perf_counter()
                yield from read_shards(self._files[target], self._reading, set(missing))

    def advanced(self, count: int) -> None:
        """So many more records are answered."""
        self._advanced += count
        self._reporter.advanced(self._advanced)

    def write(self, shard: Shard, lines: list[dict[str, object]]) -> None:
        """Write the answers to a shard, and those to its file if it was the last."""
        file = self._files[shard.target]
        self.answers.write(file, shard.number, lines)
        for line in lines:
            self.now.add_line(line)
        self._missing[shard.target].remove(shard.number)
        if not self._missing[shard.target]:
            self._join(file)

    def join_whole(self) -> None:
        """Join the files that a run before had all shards of."""
        for target, missing in list(self._missing.items()):
            if not missing:
                self._join(self._files[target])

    def _join(self, file: QuestionFile) -> None:
        self.counts.add(self.answers.join(file))
        del self._missing[file.target]


def predict(settings: PredictSettings, reporter: PredictReporter) -> PredictResult:
    """Answer files of questions; a run that was interrupted goes on.

    Args:
        settings: of `ptune predict`.
        reporter: told of the progress.

    Raises:
        PTuneError: what is wrong with model, checkpoint, data, output or workers.
    """
    opening = open_workers(settings, reporter)  # what they need is looked at now
    answering, found = find_answering(settings), Found()
    questions = find_questions(settings.data, found.files)
    check_output(settings.output, questions)
    check_free(settings.output, "prediction")
    reading = Reading(_columns(settings, answering), answering.base.generation, asks=True)
    files = _survey(settings, questions, reading, found, reporter)
    answering = with_weights(answering, settings)
    with opening as workers, holding(settings.output, "prediction"):
        run = _answer(settings, answering, workers, files, reading, reporter)
        lost = workers.lost
    return PredictResult(
        output=settings.output,
        files=len(files),
        counts=run.counts,
        answered=run.now.records,
        new_tokens=run.now.new_tokens,
        seconds=time.perf_counter() - run.began if run.began else 0.0,
        lost_workers=lost,
        skipped=tuple(found.bad),
        notices=(*answering.notices, *found.notices()),
    )


def _columns(settings: PredictSettings, answering: Answering) -> Columns:
    """Those that are named, else those of the training but for responses, which need not be."""
    names = ("prompt_column", "history_column", "context_column")
    prompt, history, context = (
        getattr(settings, name) or answering.trained.get(name) for name in names
    )
    columns = Columns(prompt, settings.response_column, history, context)
    check_columns(columns, asks=True)
    return columns


def _survey(
    settings: PredictSettings,
    questions: Mapping[str, Path],
    reading: Reading,
    found: Found,
    reporter: PredictReporter,
) -> list[QuestionFile]:
    """Read all data once: what is wrong with it is said before anything is computed."""
    reporter.phase("Reading data", len(questions), 0)
    files = []
    for target, path in questions.items():
        files.append(survey(path, target, reading, found, settings.shard_size))
        reporter.advanced(len(files))
    found.check(settings.skip_bad_records)
    return files


def _answer(
    settings: PredictSettings,
    answering: Answering,
    workers: Workers,
    files: list[QuestionFile],
    reading: Reading,
    reporter: PredictReporter,
) -> _Run:
    decides = identity(answering, settings) | {"dtype": workers.dtype}
    run = _Run(Answers(settings.output, decides), files, reading, reporter)
    run.join_whole()
    if not run.is_done:
        for shard, lines in workers.answers(answering, decides, run.shards(), run.advanced):
            run.write(shard, lines)
    return run
