"""Work that is divided among processes, of which the first collects the results.

Through torchrun's store, without a process group: nobody waits for anybody but the first for the
last result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from ptune.errors import ConfigError
from ptune.files.json_text import to_json
from ptune.parallel.heartbeat import connect
from ptune.parallel.processes import process_count, process_number

T = TypeVar("T")

_FOR_THE_OTHERS = timedelta(hours=2)  # to load what the first has loaded
_LOOK_AGAIN = 0.05  # seconds


class Team:
    """The processes of a command; of one process alone, it costs nothing.

    Attributes:
        count: how many they are.
        number: which of them this one is.
    """

    def __init__(self) -> None:
        self.count, self.number = process_count(), process_number()
        self._told = 0
        self._heard = [0] * self.count
        self._store = connect("ptune-team", _FOR_THE_OTHERS) if self.count > 1 else None

    @property
    def first(self) -> bool:
        """Whether this process collects."""
        return self.number == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part: each of the others has about as much, and like it in order."""
        return items[self.number :: self.count]

    def begin(self, plan: Any, identity: str) -> Any:
        """Learn what the first has planned, and see that all have the same to do.

        Args:
            plan: of the first, as JSON has it; of the others it is not looked at.
            identity: of the work.

        Returns:
            The plan of the first.

        Raises:
            ConfigError: the first has another identity.
        """
        if self._store is None:
            return plan
        if self.first:
            self._store.set("plan", to_json([identity, plan]))
            return plan
        of_first, plan = json.loads(self._store.get("plan"))
        if of_first != identity:
            raise ConfigError(
                f"process {self.number} has another model, checkpoint or data than process 0; give "
                "every process the same command and the same files"
            )
        return plan

    def tell(self, result: Any) -> None:
        """Give the first a result, as JSON has it."""
        assert self._store is not None
        self._store.set(f"{self.number} {self._told}", to_json(result))
        self._told += 1

    def heard(self) -> Iterator[Any]:
        """The results of the others that have come and were not heard yet."""
        if self._store is None:
            return
        for number in range(1, self.count):
            while self._store.check([name := f"{number} {self._heard[number]}"]):
                self._heard[number] += 1
                yield json.loads(self._store.get(name))
                self._store.delete_key(name)

    def wait(self) -> None:
        """Give the others a little time."""
        time.sleep(_LOOK_AGAIN)
