"""The one seam between what is trained and everything else: a method of training.

A method puts something beside a frozen base, and has a form for it in a checkpoint.  Trainer,
checkpoints, evaluation and loading ask the method and know no more of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ptune.base.folder import BaseModel
from ptune.checkpoint.folder import ADAPTER_CONFIG, ADAPTER_FILE, PREFIX_FILE
from ptune.checkpoint.lora import (
    digest_lora,
    is_lora,
    load_lora,
    read_lora,
    save_lora,
    set_values,
)
from ptune.checkpoint.metadata import NOUNS
from ptune.checkpoint.prefix import (
    attach_prefix,
    digest_prefix,
    load_prefix,
    read_prefix,
    save_prefix,
)
from ptune.config.settings import TrainSettings
from ptune.config.shared_settings import LORA, P_TUNING
from ptune.models.lora import (
    LoraForm,
    attach_lora,
    find_targets,
    library,
    lora_form,
    lora_parameters,
)
from ptune.models.prefix_encoder import PrefixEncoder


class Method(ABC):
    """What is trained beside a frozen base, and its form in a checkpoint.

    Attributes:
        name: as `--method` has it.
        files: that hold it in a checkpoint.
    """

    name: str
    files: tuple[str, ...]

    @property
    def noun(self) -> str:
        """What is trained, for messages."""
        return NOUNS[self.name]

    def require(self) -> None:  # noqa: B027, most need nothing
        """See that the packages it needs are installed.

        Raises:
            ConfigError: naming one that is not.
        """

    @abstractmethod
    def attach(self, model: Any, settings: TrainSettings) -> None:
        """Put a new one beside a model from `build_model`, drawn from torch's generator."""

    @abstractmethod
    def load(self, model: Any, folder: Path, base: BaseModel, dropout: float = 0.0) -> None:
        """Put that of a checkpoint beside a model from `build_model`.

        Args:
            model: changed in place.
            folder: of the checkpoint.
            base: that the model is, named in errors.
            dropout: in training.

        Raises:
            CheckpointError: none is there, it is incomplete, or of another model.
        """

    @abstractmethod
    def parameters(self, model: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that are trained, by name."""

    @abstractmethod
    def seed_dropout(self, model: Any, seeds: Sequence[int]) -> None:
        """Let the dropout of the next forward follow from these, one for each row."""

    @abstractmethod
    def describe(self, model: Any) -> dict[str, Any]:
        """What `CheckpointConfig` records of its form."""

    @abstractmethod
    def save(self, model: Any, folder: Path, base_name: str) -> None:
        """Write `files`; `base_name` is what the base is called."""

    @abstractmethod
    def restore(self, model: Any, folder: Path) -> None:
        """Take the values of a checkpoint of the same training.

        Raises:
            CheckpointError: from `check`.
        """

    @abstractmethod
    def check(self, folder: Path) -> None:
        """See that a checkpoint can be read.

        Raises:
            CheckpointError: none is there, or it is damaged.
        """

    @abstractmethod
    def digest(self, folder: Path) -> str:
        """Tell checkpoints apart by their tensors: a SHA-256 in hexadecimal.

        Raises:
            CheckpointError: from `check`.
        """


class PTuning(Method):
    """P-Tuning v2: a prefix of keys and values."""

    name = P_TUNING
    files = (PREFIX_FILE,)

    def attach(self, model: PreTrainedModel, settings: TrainSettings) -> None:
        """Begin at random."""
        prefix = PrefixEncoder(
            model.base_model.prefix_shape,
            settings.pre_seq_len,
            settings.prefix_projection,
            settings.prefix_dropout,
        )
        attach_prefix(model, prefix)

    def load(self, model: Any, folder: Path, base: BaseModel, dropout: float = 0.0) -> None:
        """Read a prefix and attach it."""
        load_prefix(model, folder, base, dropout)

    def parameters(self, model: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the prefix encoder."""
        yield from model.base_model.prefix_encoder.named_parameters()

    def seed_dropout(self, model: Any, seeds: Sequence[int]) -> None:
        """Each row's dropout is its own."""
        model.base_model.prefix_encoder.dropout.row_seeds = list(seeds)

    def describe(self, model: Any) -> dict[str, Any]:
        """Length and projection."""
        prefix = model.base_model.prefix_encoder
        return {"pre_seq_len": prefix.pre_seq_len, "prefix_projection": prefix.prefix_projection}

    def save(self, model: Any, folder: Path, base_name: str) -> None:
        """Write the prefix under the official key names."""
        save_prefix(model, folder)

    def restore(self, model: Any, folder: Path) -> None:
        """Take the prefix of a checkpoint."""
        model.base_model.prefix_encoder.load_state_dict(read_prefix(folder))

    def check(self, folder: Path) -> None:
        """See that there is a prefix."""
        read_prefix(folder)

    def digest(self, folder: Path) -> str:
        """Of the prefix's tensors, in whatever file they are."""
        return digest_prefix(folder)


class Lora(Method):
    """LoRA: low-rank matrices beside linear layers."""

    name = LORA
    files = (ADAPTER_CONFIG, ADAPTER_FILE)

    def require(self) -> None:
        """It needs `peft`."""
        library()

    def attach(self, model: Any, settings: TrainSettings) -> None:
        """Begin at the base: `A` at random, `B` zero."""
        modules = find_targets(model, settings.lora_target)
        form = LoraForm(settings.lora_rank, settings.lora_alpha, modules, settings.lora_dropout)
        attach_lora(model, form)

    def load(self, model: Any, folder: Path, base: BaseModel, dropout: float = 0.0) -> None:
        """Read a LoRA and put it beside the model; it has no dropout then."""
        load_lora(model, folder, base)

    def parameters(self, model: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The matrices."""
        yield from lora_parameters(model)

    def seed_dropout(self, model: Any, seeds: Sequence[int]) -> None:
        """`peft` draws for the whole micro-batch from torch's own generator."""
        form = lora_form(model)
        if form is not None and form.dropout:
            torch.manual_seed(seeds[0])

    def describe(self, model: Any) -> dict[str, Any]:
        """Nothing: adapter_config.json has it all."""
        return {}

    def save(self, model: Any, folder: Path, base_name: str) -> None:
        """Write an adapter of `peft`."""
        save_lora(model, folder, base_name)

    def restore(self, model: Any, folder: Path) -> None:
        """Take the matrices of a checkpoint."""
        set_values(model, read_lora(folder)[1])

    def check(self, folder: Path) -> None:
        """See that there is a LoRA."""
        read_lora(folder)

    def digest(self, folder: Path) -> str:
        """Of the matrices."""
        return digest_lora(folder)


_METHODS: dict[str, Method] = {method.name: method for method in (PTuning(), Lora())}


def method_of(name: str) -> Method:
    """The method that a `--method` names."""
    return _METHODS[name]


def method_in(folder: Path) -> Method:
    """The method by which a checkpoint was trained, as its files show."""
    return _METHODS[LORA if is_lora(folder) else P_TUNING]
