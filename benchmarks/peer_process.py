"""A peer of a comparison, in a subprocess and perhaps an environment of its own.

The other end is `peers/protocol.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent / "peers"


def original_files(text: str) -> Path:
    """A folder with the original's Python files, as an argument of a command."""
    folder = Path(text).resolve()
    if not (folder / "modeling_chatglm.py").is_file():
        raise argparse.ArgumentTypeError(f"no modeling_chatglm.py in {folder}")
    return folder


class PeerProcess:
    """Starts a script of `peers/` and asks it for one step after the other.

    Args:
        name: for the table and for errors.
        python: of the environment.
        script: a file of `peers/`.
        task: what it reads; its `threads` are those of the process.
        folder: for the task's file.
        path: put first on its `PYTHONPATH`.

    Attributes:
        about: versions and settings that it gives.
    """

    def __init__(
        self,
        name: str,
        python: str,
        script: str,
        task: dict[str, Any],
        folder: Path,
        path: Path | None = None,
    ) -> None:
        self.name = name
        file = folder / f"{name}.json"
        file.write_text(json.dumps(task), encoding="utf-8")
        threads = str(task["threads"])
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if path is not None:
            environment["PYTHONPATH"] = str(path)
        self._process = subprocess.Popen(
            [python, str(PEERS / script), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.about = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended; what it said is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def step(self) -> dict[str, Any]:
        """Ask for a step: its `seconds`, and the `peak` memory of the process so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._read()

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
