"""The settings of `ptune predict`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from ptune.config.declaration import Range, setting
from ptune.config.shared_settings import ANSWERS, DATA, OUTPUT, WORKERS, GeneratingSettings
from ptune.errors import ConfigError

_INDEXED = re.compile(r"cuda:[0-9]+")


@dataclasses.dataclass(frozen=True)
class PredictSettings(GeneratingSettings):
    """`ptune predict`."""

    data: tuple[Path, ...] = setting(
        DATA, (), "Questions: files or folders; each file is answered by itself.", "-d"
    )
    workers: int | None = setting(
        WORKERS,
        None,
        "Models that answer side by side, by Ray; by default one, with --ray one for each card, "
        "or without cards for each machine.",
        within=Range(least=1, most=10**4),
    )
    ray: str | None = setting(
        WORKERS, None, "Address of a Ray cluster, HOST:PORT, or auto for the one of this machine."
    )
    shard_size: int = setting(
        ANSWERS,
        1000,
        "Records of a shard, which is answered and written as one.",
        within=Range(least=1, most=10**6),
    )
    output: Path = setting(
        OUTPUT, Path(), "Folder for the answers, a .jsonl file for each file of data.", "-o"
    )

    @property
    def distributed(self) -> bool:
        """Whether Ray runs the workers."""
        return self.ray is not None or (self.workers or 1) > 1

    def __post_init__(self) -> None:
        """Check what can be checked without model and data."""
        super().__post_init__()
        if not self.data:
            raise ConfigError("--data is missing; pass files or a folder of questions")
        if "output" not in self.given:
            raise ConfigError("--output is missing; pass a folder for the answers")
        if self.distributed and _INDEXED.fullmatch(self.device or ""):
            raise ConfigError(
                f"device {self.device} is one card, and each worker of Ray has a card of its own; "
                "use --device cuda"
            )
