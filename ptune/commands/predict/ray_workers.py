"""Workers of Ray: actors with a model each, on this machine or on those of a cluster.

Shards are read here and sent to whoever is free; their lines come back here to be written, so that
the other machines need the model alone, and a shard counts once however often it was sent.  A
worker that dies is not started again by Ray, since the call would wait for its place: its shard
goes to the next one that is free, and another worker is started where there is room.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import re
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptune import __version__
from ptune.commands.predict.answerer import Answered, Answerer, dtype_of
from ptune.commands.predict.result import PredictReporter
from ptune.commands.predict.shards import Shard
from ptune.config.declaration import shown
from ptune.config.predict_settings import PredictSettings
from ptune.errors import ConfigError, EvaluationError, PTuneError, missing_package, reason_of
from ptune.evaluation.answering import Answering, find_answering, identity, with_weights

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ModuleNotFoundError as error:
    raise missing_package(
        error, "ptune predict with --ray or --workers", "predict", ", or leave both options out"
    ) from error

_MOST_LOSSES = 3  # of one shard, or in a row while they load
_PATIENCE = 30.0  # seconds without any worker before that is said
_ANSWER_TIME = 10.0  # seconds that a cluster has to take a connection
_HOST_AND_PORT = re.compile(r"(?P<host>[^/@]+):(?P<port>[0-9]{1,5})")


class RayWorker:
    """What runs in a process of Ray's.

    Args:
        settings: of the command, with paths from / on.
    """

    def __init__(self, settings: PredictSettings) -> None:
        self._settings = settings
        self._answerer: Answerer | None = None

    def load(self) -> dict[str, Any]:
        """Load the model; returns what decides its answers, as it is on this machine.

        Raises:
            PTuneError: what is wrong with it, and the machine.
        """
        try:
            answering = with_weights(find_answering(self._settings), self._settings)
            self._answerer = Answerer(answering, self._settings)
        except PTuneError as error:
            raise type(error)(f"on {_machine()}: {error}") from error
        found = identity(answering, self._settings) | {"dtype": dtype_of(self._settings)}
        return found | {"machine": _machine(), "ptune": __version__}

    def answer(self, shard: Shard) -> list[dict[str, Any]]:
        """As `Answerer.answer`."""
        assert self._answerer is not None
        return self._answerer.answer(shard)


@dataclass
class _Call:
    """What a worker was told to do: load, or answer a shard."""

    worker: Any
    shard: Shard | None


class RayWorkers:
    """The workers of a run.

    Args:
        settings: of the command.
        reporter: told of workers that die.

    Raises:
        ConfigError: there is no room for so many.
    """

    def __init__(self, settings: PredictSettings, reporter: PredictReporter) -> None:
        self.lost = 0
        self._reporter = reporter
        self._room = _find_room(settings)
        device = "cuda" if self._room.cards else settings.device or "cpu"
        self._settings = dataclasses.replace(settings, device=device)
        self.dtype = self._find_dtype()
        self._calls: dict[Any, _Call] = {}
        self._idle: list[Any] = []
        self._returned: deque[Shard] = deque()
        self._losses: Counter[tuple[str, int] | None] = Counter()
        self._told = False

    def answers(
        self,
        answering: Answering,
        identity: dict[str, Any],
        shards: Iterator[Shard],
        advanced: Callable[[int], None],
    ) -> Iterator[Answered]:
        """Answer shards by whoever is free."""
        settings = _everywhere(self._settings, answering)
        expected = identity | {"ptune": __version__}
        for _ in range(self._room.workers):
            self._start(settings)
        more = True
        while more or self._returned or any(call.shard for call in self._calls.values()):
            call, value = self._next_result(settings)
            if call is None:
                continue
            self._losses[None] = 0
            if call.shard is None:
                _check_same(value, expected)
            else:
                advanced(len(value))
                yield call.shard, value
            self._idle.append(call.worker)
            while self._idle and (self._returned or more):
                shard = self._returned.popleft() if self._returned else next(shards, None)
                if shard is None:
                    more = False
                else:
                    self._send(self._idle.pop(), shard)

    def _start(self, settings: PredictSettings) -> None:
        kind = ray.remote(RayWorker).options(
            num_cpus=self._room.cpus,
            num_gpus=self._room.cards,
            scheduling_strategy="SPREAD",
            max_restarts=0,
            max_task_retries=0,
        )
        worker = kind.remote(settings)
        self._calls[worker.load.remote()] = _Call(worker, None)

    def _send(self, worker: Any, shard: Shard) -> None:
        self._calls[worker.answer.remote(shard)] = _Call(worker, shard)

    def _next_result(self, settings: PredictSettings) -> tuple[_Call | None, Any]:
        """Wait for a worker; returns no call where it died, or nothing came.

        Raises:
            PTuneError: what a worker has raised.
            EvaluationError: the workers die.
        """
        done, _ = ray.wait(list(self._calls), num_returns=1, timeout=_PATIENCE)
        if not done:
            if not self._told and not any(call.shard for call in self._calls.values()):
                self._told = True
                self._reporter.noticed(
                    "no worker has a model yet: it is being loaded, or no machine has room"
                )
            return None, None
        call = self._calls.pop(done[0])
        try:
            return call, ray.get(done[0])
        except RayTaskError as error:
            if isinstance(error.cause, PTuneError):
                raise error.cause from error
            raise
        except RayError as error:
            self._lose(call, error, settings)
            return None, None

    def _lose(self, call: _Call, error: RayError, settings: PredictSettings) -> None:
        """Hand the shard of a dead worker to another, and start one in its place.

        Raises:
            EvaluationError: it was not the first.
        """
        reason = _reason(error)
        self.lost += 1
        ray.kill(call.worker)  # of whom we may only have lost sight
        place = (call.shard.target, call.shard.number) if call.shard else None
        self._losses[place] += 1
        if self._losses[place] >= _MOST_LOSSES:
            what = f"shard {place[1]} of {place[0]}" if place else "loading the model"
            raise EvaluationError(
                f"{what} has ended {_MOST_LOSSES} workers ({reason}); look into the logs of Ray, "
                "or use a smaller --batch-size or fewer --workers"
            )
        after = "another one answers its shard" if call.shard else "another one is started"
        self._reporter.noticed(f"a worker was lost ({reason}); {after}")
        if call.shard is not None:
            if self._idle:
                self._send(self._idle.pop(), call.shard)
            else:
                self._returned.append(call.shard)
        self._start(settings)

    def _find_dtype(self) -> str:
        """The precision that workers compute in; of a card, as a machine with one has it."""
        if not self._room.cards:
            return dtype_of(self._settings)
        asked = ray.remote(dtype_of).options(num_gpus=1)
        try:
            return str(ray.get(asked.remote(self._settings)))
        except RayTaskError as error:
            if isinstance(error.cause, PTuneError):
                raise error.cause from error
            raise


@dataclass(frozen=True)
class _Room:
    """Workers, and what each of them takes."""

    workers: int
    cpus: int
    cards: int


def _find_room(settings: PredictSettings) -> _Room:
    """Divide the machines of the cluster among workers.

    Raises:
        ConfigError: there is no room for so many.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cards = sum(int(has.get("GPU", 0)) for has in machines)
    if settings.device == "cuda" or (settings.device is None and cards):
        if not cards:
            raise ConfigError("device cuda is on no machine of Ray; use --device cpu")
        workers = settings.workers or cards
        if workers > cards:
            raise ConfigError(
                f"workers {workers} is more than the {cards} cards that Ray has; use fewer "
                "--workers, or --device cpu"
            )
        return _Room(workers, 1, 1)
    cpus = [int(has["CPU"]) for has in machines if has.get("CPU", 0) >= 1]
    if not cpus:
        raise ConfigError("no machine of Ray has a CPU for a worker; start Ray on one that has")
    workers = settings.workers or len(cpus)
    each = max(1, min(cpus) // math.ceil(workers / len(cpus)))
    if workers > sum(count // each for count in cpus):
        raise ConfigError(
            f"workers {workers} is more than the {sum(cpus)} CPUs that Ray has; use fewer --workers"
        )
    return _Room(workers, each, 0)


def _everywhere(settings: PredictSettings, answering: Answering) -> PredictSettings:
    """The settings as workers have them, which run in folders of their own."""
    name = answering.base.name
    if Path(name).is_dir():
        name = str(Path(name).absolute())
    checkpoint = settings.checkpoint and settings.checkpoint.absolute()
    return dataclasses.replace(settings, model=name, checkpoint=checkpoint)


def _check_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a worker that would answer otherwise than we would.

    Raises:
        ConfigError: naming its machine and what differs.
    """
    if changed := sorted(name for name in expected if found.get(name) != expected[name]):
        raise ConfigError(
            f"the worker on {found['machine']} has another {', '.join(changed)} than this machine; "
            "have the same model, checkpoint and ptune on all of them"
        )


def _machine() -> str:
    return str(ray.util.get_node_ip_address())


@contextmanager
def ray_workers(settings: PredictSettings, reporter: PredictReporter) -> Iterator[RayWorkers]:
    """Join a cluster, or start one on this machine, for the block; its workers end with it.

    Raises:
        ConfigError: the cluster cannot be reached, or has no room.
    """
    # Ray says on stdout what happens to its machines; what a program reads there is ours alone.
    with contextlib.redirect_stdout(sys.stderr):
        _join(settings)
        try:
            yield RayWorkers(settings, reporter)
        finally:
            ray.shutdown()


def _join(settings: PredictSettings) -> None:
    address = settings.ray or "local"
    try:
        if at := _HOST_AND_PORT.fullmatch(address):
            # Ray itself would try for minutes.
            socket.create_connection((at["host"], int(at["port"])), _ANSWER_TIME).close()
        ray.init(
            address,
            include_dashboard=False if settings.ray is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (RayError, RuntimeError, ValueError, OSError, OverflowError) as error:
        raise ConfigError(
            f"Ray at {shown(address)} cannot be reached ({_reason(error)}); see `ray status`, or "
            "leave --ray and --workers out"
        ) from error


def _reason(error: Exception) -> str:
    """The first sentence of an error."""
    text = reason_of(error) if isinstance(error, OSError) else str(error)
    said = " ".join((text.splitlines() or [""])[0].split()).partition(". ")[0]
    return said.rstrip(".") or type(error).__name__
