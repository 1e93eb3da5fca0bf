"""What answers the records of `ptune eval` and `ptune predict`, and how; told apart by contents."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptune.base.context import Answer, check_context
from ptune.base.folder import BaseModel
from ptune.base.weights import WeightFiles
from ptune.checkpoint.base import find_base, fingerprint, trained_bits, training_metadata
from ptune.checkpoint.folder import find_whole_checkpoint
from ptune.checkpoint.load import load_model
from ptune.checkpoint.metadata import CheckpointConfig
from ptune.checkpoint.method import method_in
from ptune.config.shared_settings import GeneratingSettings
from ptune.data.messages import Message
from ptune.data.prompt import Lengths, default_target_length
from ptune.data.truncation import TURNS
from ptune.generation.sampling import Sampling
from ptune.models.trained import show_trained
from ptune.quantization.layers import choose_bits

ADVICE = "a smaller --batch-size, or a smaller --max-source-length"  # where memory is full


@dataclass(frozen=True)
class Answering:
    """A model and how it answers.

    Attributes:
        base: its weights may not be there before `with_weights`.
        checkpoint: what was trained beside it; None for a bare or merged model.
        metadata: of the training; None if nothing says so.
        passed_over: what to tell of a checkpoint that is not the last one.
        lengths: room for prompts, and for the responses of records.
        sampling: how answers are drawn, and their longest.
        bits: that the base is held in.
    """

    base: BaseModel
    checkpoint: Path | None
    metadata: CheckpointConfig | None
    passed_over: str | None
    lengths: Lengths
    sampling: Sampling
    bits: str | None = None

    @property
    def trained(self) -> dict[str, Any]:
        """The settings of the training."""
        return self.metadata.settings if self.metadata else {}

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know of it."""
        return (self.passed_over,) if self.passed_over else ()


def find_answering(settings: GeneratingSettings) -> Answering:
    """Find base model and checkpoint, and what follows from the training where nobody says.

    The weights come later: errors in the data are raised before a long download.

    Raises:
        PTuneError: what is wrong with model, checkpoint or lengths.
    """
    checkpoint, passed_over = settings.checkpoint, None
    if checkpoint is not None:
        checkpoint, passed_over = find_whole_checkpoint(checkpoint)
    base = find_base(settings.model, checkpoint, settings.prompt_format, weights=False)
    metadata = training_metadata(base, checkpoint)
    trained = metadata.settings if metadata else {}
    target, origin = trained.get("max_target_length"), "of the training"
    if target is None:
        target, origin = default_target_length(base.generation), "(the default)"
    source = settings.max_source_length or trained.get("max_source_length", 64)
    new_tokens = settings.max_new_tokens or target
    for answer in (
        Answer("max_new_tokens", new_tokens),
        Answer("max_target_length", target, origin),
    ):
        check_context(base.config, base.name, source, answer)
    truncation = settings.truncation or trained.get("truncation", TURNS)
    sampling = Sampling(new_tokens, settings.do_sample, settings.top_p, settings.temperature)
    lengths = Lengths(source, target, truncation)
    return Answering(base, checkpoint, metadata, passed_over, lengths, sampling)


def with_weights(answering: Answering, settings: GeneratingSettings) -> Answering:
    """See that base and checkpoint can be read, and how the base is to be held.

    Raises:
        PTuneError: what is wrong with them.
    """
    checkpoint = answering.checkpoint
    if checkpoint is not None:
        method_in(checkpoint).check(checkpoint)  # before a download
    base = find_base(settings.model, checkpoint, settings.prompt_format)
    bits = trained_bits(base, checkpoint, settings.quantization_bit)
    bits = choose_bits(base, WeightFiles(base.path), bits)
    return dataclasses.replace(answering, base=base, bits=bits)


def identity(answering: Answering, settings: GeneratingSettings) -> dict[str, Any]:
    """Everything but the records that decides the answers: equal for runs that may go on.

    Args:
        answering: from `with_weights`.
        settings: of the command.
    """
    base, prefix = answering.base, None
    if settings.prefix:
        has_one = answering.checkpoint or base.config.get("pre_seq_len")
        none = hashlib.sha256().hexdigest()
        folder = answering.checkpoint or base.path
        prefix = method_in(folder).digest(folder) if has_one else none
    merged, folded = training_metadata(base, None), ""
    if merged and merged.inputs.get("lora"):  # which changes no norm
        folded = f"+{merged.inputs['lora']}"
    return {
        "base_model": fingerprint(base) + folded,
        "quantization_bit": answering.bits,
        "prefix": prefix,
        "prompt_format": base.generation.value,
        "max_source_length": answering.lengths.max_source_length,
        "truncation": answering.lengths.truncation,
        "generation": answering.sampling.arguments(),
        "seed": settings.seed if settings.do_sample else None,
    }


def load(answering: Answering, settings: GeneratingSettings) -> Any:
    """Load the model, with what was trained or, as it is asked for, without.

    Args:
        answering: from `with_weights`.
        settings: of the command.

    Raises:
        PTuneError: from `load_model`.
    """
    model = load_model(
        answering.base.path,
        answering.checkpoint,
        settings.dtype,
        settings.device,
        answering.bits or "none",
        settings.quantization_backend,
        answering.base.generation.value,
    )
    show_trained(model, settings.prefix)
    return model


def as_decoded(tokenizer: Any, answer: Message) -> str:
    """A reference as the tokenizer would write it; ChatGLM-6B's turns `，` into `,`."""
    called, text = answer.metadata, answer.content
    text = f"{called}\n{text}" if called else text
    decoded: str = tokenizer.decode(tokenizer.encode_text(text), skip_special_tokens=True)
    return decoded.strip()
