"""How a server answers: what all of its interfaces go by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Serving:
    """How a server answers.

    Attributes:
        default: the prefix of a request that names none.
        max_new_tokens: of an answer that asks for no number.
        system: instruction for conversations without one.
        keys: of which a request must bring one.
        max_body: bytes of a request.
        body_seconds: in which they must have come.
        prefix_folder: out of which prefixes may be loaded while it runs; None for nowhere.
        grace: seconds that answers have to finish when the server ends.
        web: whether it has a page for people, which needs Gradio.
    """

    default: str
    max_new_tokens: int = 512
    system: str = ""
    keys: Sequence[str] = ()
    max_body: int = 1 << 20
    body_seconds: float = 60.0
    prefix_folder: Path | None = None
    grace: float = 30.0
    web: bool = False
