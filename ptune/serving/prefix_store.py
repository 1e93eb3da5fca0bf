"""The prefixes of a server: all of them in the memory of the host, those in use on the device.

Shapes: `L` layers, `G` key/value heads, `P` pre_seq_len, `D` head dimension.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from torch import Tensor

from ptune.base.folder import BaseModel
from ptune.checkpoint.base import check_fingerprint, check_prompt_format
from ptune.checkpoint.folder import find_whole_checkpoint
from ptune.checkpoint.metadata import CheckpointConfig
from ptune.checkpoint.prefix import build_prefix
from ptune.data.example_questions import ExampleQuestion
from ptune.errors import ConfigError, PTuneError
from ptune.models.prefix_encoder import shown_prefix, stack_prefix

_NAME = re.compile(r"(?!\.+$)[\w.-]{1,96}")  # `.` and `..` would be lost from an address


class UnknownPrefix(PTuneError):
    """No prefix has this name."""


class BadName(ConfigError):
    """A prefix cannot have this name, or not be dropped under it."""


class PrefixStore:
    """Prefixes by name; safe to be used and changed by several threads.

    Args:
        model: from `load_model`; a prefix of its own, which a merged model has, is its bare answer.
        base: that it was loaded from.
        name: what the model is called without another prefix.
        device_bytes: of prefixes on a card; those used least lately are left to the host.

    Attributes:
        bare: `name`.
    """

    def __init__(
        self, model: Any, base: BaseModel, name: str, device_bytes: int | None = None
    ) -> None:
        self._base = base
        self._shape = model.base_model.prefix_shape
        self._dtype = model.get_input_embeddings().weight.dtype
        self._device = model.device
        self._device_bytes = device_bytes
        self._lock = threading.Lock()
        self.bare = name
        own = shown_prefix(model)
        self._host: dict[str, Tensor | None] = {name: own.cpu() if own is not None else None}
        self._on_device: OrderedDict[str, Tensor] = OrderedDict()
        self._questions: dict[str, tuple[ExampleQuestion, ...]] = {}

    @property
    def names(self) -> list[str]:
        """Of all prefixes, and first of the model itself."""
        with self._lock:
            return list(self._host)

    def add(self, name: str, folder: Path) -> str | None:
        """Read a prefix from a checkpoint.

        Returns:
            What there is to say of the checkpoint: that a damaged one was passed over.

        Raises:
            BadName: the name is taken, or none.
            CheckpointError: no prefix there, or one of another model.
        """
        if not _NAME.fullmatch(name):
            raise BadName(f"{name!r} is no name of a prefix; use letters, digits, `.`, `_` and `-`")
        self._refuse_taken(name)
        found, passed_over = find_whole_checkpoint(folder)
        check_prompt_format(self._base, found)
        check_fingerprint(self._base, found)
        encoder = build_prefix(self._shape, found, self._base).eval()
        states = stack_prefix(encoder, self._dtype)
        with self._lock:
            self._refuse_taken(name)
            self._host[name] = states
        self.recall_questions(name, found)
        return passed_over

    def recall_questions(self, name: str, checkpoint: Path) -> None:
        """Take over the questions that a checkpoint has recorded, for what is served as `name`."""
        metadata = CheckpointConfig.read(checkpoint)
        recorded = metadata.example_questions if metadata else []
        with self._lock:
            self._questions[name] = tuple(ExampleQuestion(**said) for said in recorded)

    def _refuse_taken(self, name: str) -> None:
        if name in self._host:
            raise BadName(f"the name {name} is taken by another prefix; use another one")

    def drop(self, name: str) -> None:
        """Forget a prefix; requests that have it go on.

        Raises:
            UnknownPrefix: there is none.
            BadName: it is the model's own.
        """
        with self._lock:
            if name == self.bare:
                raise BadName(f"{name} is the model itself, which cannot be dropped")
            self._look_up(name)
            del self._host[name]
            self._questions.pop(name, None)
            self._on_device.pop(name, None)

    def questions(self, name: str) -> tuple[ExampleQuestion, ...]:
        """Those that a prefix's checkpoint has recorded; none for a name that is not known."""
        with self._lock:
            return self._questions.get(name, ())

    def check(self, name: str) -> None:
        """See that a prefix is there.

        Raises:
            UnknownPrefix: there is none.
        """
        with self._lock:
            self._look_up(name)

    def get(self, name: str) -> Tensor | None:
        """A prefix on the device, `[L, 2, G, P, D]`, or None for the bare model.

        Raises:
            UnknownPrefix: there is none.
        """
        with self._lock:
            states = self._look_up(name)
            if states is None or states.device == self._device:
                return states
            if name not in self._on_device:
                self._on_device[name] = states.to(self._device)
            self._on_device.move_to_end(name)
            while len(self._on_device) > 1 and self.device_bytes > (self._device_bytes or 2**63):
                self._on_device.popitem(last=False)
            return self._on_device[name]

    @property
    def longest(self) -> int:
        """Tokens of the longest prefix."""
        return max((states.shape[3] for states in self._held()), default=0)

    @property
    def most_device_bytes(self) -> int:
        """What the copies on a card may come to, of the prefixes that there are."""
        copies = sum(t.nbytes for t in self._held() if t.device != self._device)
        return min(copies, self._device_bytes or copies)

    @property
    def device_bytes(self) -> int:
        """Of the copies on a card."""
        return sum(states.nbytes for states in self._on_device.values())

    def _held(self) -> list[Tensor]:
        with self._lock:
            return [states for states in self._host.values() if states is not None]

    def _look_up(self, name: str) -> Tensor | None:
        if name not in self._host:
            known = ", ".join(list(self._host)[:20])
            raise UnknownPrefix(f"no model is called {name!r}; use one of {known}")
        return self._host[name]
