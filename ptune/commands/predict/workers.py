"""Who answers shards: one model in this process, or those of Ray's workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from ptune.commands.predict.answerer import Answered, Answerer, dtype_of
from ptune.commands.predict.result import PredictReporter
from ptune.commands.predict.shards import Shard
from ptune.config.predict_settings import PredictSettings
from ptune.evaluation.answering import Answering


class Workers(Protocol):
    """Models that answer shards.

    Attributes:
        dtype: the precision of their bases.
        lost: how many have died.
    """

    dtype: str
    lost: int

    def answers(
        self,
        answering: Answering,
        identity: dict[str, Any],
        shards: Iterator[Shard],
        advanced: Callable[[int], None],
    ) -> Iterator[Answered]:
        """Answer shards, which are read when somebody is free for them.

        Args:
            answering: from `with_weights`, here.
            identity: what decides the answers, here; a worker with another is refused.
            shards: each is answered once.
            advanced: told of records as they are answered.

        Yields:
            Shards in the order in which they are answered, with their lines.

        Raises:
            PTuneError: what is wrong with a model, or memory that is full.
        """


class InProcess:
    """One model, in this process.

    Args:
        settings: of the command.

    Raises:
        ConfigError: its device or precision is not there.
    """

    def __init__(self, settings: PredictSettings) -> None:
        self.dtype = dtype_of(settings)
        self.lost = 0
        self._settings = settings

    def answers(
        self,
        answering: Answering,
        identity: dict[str, Any],
        shards: Iterator[Shard],
        advanced: Callable[[int], None],
    ) -> Iterator[Answered]:
        """Answer one after the other."""
        answerer = Answerer(answering, self._settings)
        for shard in shards:
            yield shard, answerer.answer(shard, advanced)


def open_workers(
    settings: PredictSettings, reporter: PredictReporter
) -> AbstractContextManager[Workers]:
    """Have workers for a block, as the settings ask for them.

    Raises:
        ConfigError: Ray is not installed, or cannot be reached.
    """
    if settings.distributed:
        from ptune.commands.predict.ray_workers import ray_workers

        return ray_workers(settings, reporter)
    return nullcontext(InProcess(settings))
