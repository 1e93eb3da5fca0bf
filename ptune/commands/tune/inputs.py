"""What all trials compute from: data, base model, texts; looked at before the first, told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ptune.base.context import context_length
from ptune.base.folder import BaseModel
from ptune.checkpoint.base import find_base, fingerprint
from ptune.config.tune_settings import RANDOM, Choice, TuneSettings
from ptune.data.examples import digest_ids
from ptune.data.tokenizer import build_tokenizer
from ptune.errors import ConfigError
from ptune.training.beginning import find_beginning
from ptune.training.data import TrainingData, load_data
from ptune.training.distillation import read_teacher_text
from ptune.training.train import resolve_for


def find_inputs(settings: TuneSettings) -> dict[str, Any]:
    """Read the data and find the base model.

    Returns:
        Numbers of records and checksums, by what they are of.

    Raises:
        PTuneError: what is wrong with model, data or texts.
    """
    asked = (settings.model, None, settings.prompt_format)
    base = find_base(*asked, weights=False)
    tokenizer = build_tokenizer(base)
    trial = resolve_for(base, settings.trial(_longest(settings, RANDOM), Path("trial")))
    data = load_data(trial, tokenizer, base.generation)
    inputs = dict(data.inputs)
    inputs |= _starts(settings, tokenizer, base, data)
    if settings.distill_text is not None:
        longest = max(data.train["length"][:])
        taught = read_teacher_text(settings.distill_text, tokenizer, base, longest, [])
        inputs["distilled"] = digest_ids(taught)
    return inputs | {"model": fingerprint(find_base(*asked))}


def _starts(
    settings: TuneSettings, tokenizer: Any, base: BaseModel, data: TrainingData
) -> dict[str, str]:
    """Checksums of the tokens that prefixes begin as."""
    found = {}
    for start in settings.tried_starts:
        choice = _longest(settings, start)
        trial = settings.trial(choice, Path("trial"))
        context = context_length(base.config)
        if start != RANDOM and context is not None and choice.pre_seq_len > context:
            raise ConfigError(
                f"lengths {choice.pre_seq_len:,} is more than the {context:,} tokens that the "
                f"model sees, so that a prefix cannot begin as {start}; leave it out"
            )
        _, beginning = find_beginning(trial, tokenizer, base, data.train, [])
        if beginning is not None:
            found[f"start {start}"] = beginning.digest
    return found


def _longest(settings: TuneSettings, start: str) -> Choice:
    return Choice(settings.rates[0], max(settings.tried_lengths), start)
