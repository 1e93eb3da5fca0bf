"""Prefix checkpoints, ptune's and the original's, and models loaded with them.

A checkpoint is a folder with `prefix_encoder.safetensors` (official key names, float32) and
`ptune_config.json`.  The original's are read too: `pytorch_model.bin` or `model.safetensors` with
`transformer.prefix_encoder.*`, alone or inside a whole model.  docs/checkpoint-format.md has both.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptune import __version__
from ptune.base.folder import BaseModel, Generation, find_base_model
from ptune.base.weights import WeightFiles, has_weights, save_tensors
from ptune.device.full_memory import SMALLER_WEIGHTS, memory_advice
from ptune.device.precision import choose_device, choose_dtype
from ptune.errors import CheckpointError, ModelError
from ptune.files.atomic import write_text_atomically
from ptune.files.json_text import to_json
from ptune.models.build import build_model
from ptune.models.prefix_encoder import PrefixEncoder, PrefixShape

PREFIX_FILE = "prefix_encoder.safetensors"
CONFIG_FILE = "ptune_config.json"
OFFICIAL_KEY = "transformer.prefix_encoder."


@dataclass(frozen=True)
class CheckpointConfig:
    """What ptune_config.json records, so that nothing has to be said twice.

    Attributes:
        base_model: what training was given as `--model`.
        fingerprint: of the base model's weights, see `fingerprint`.
        prompt_format: name of the generation whose prompt training used.
        pre_seq_len: number of prefix tokens.
        prefix_projection: whether an MLP stands behind the embedding.
        settings: the resolved settings of the training.
        ptune_version: which ptune wrote this.
    """

    base_model: str
    fingerprint: str
    prompt_format: str
    pre_seq_len: int
    prefix_projection: bool
    settings: dict[str, Any] = field(default_factory=dict)
    ptune_version: str = __version__

    @staticmethod
    def read(folder: Path) -> CheckpointConfig | None:
        """Read a checkpoint's record; None for one that the original code left.

        Raises:
            CheckpointError: the file is damaged.
        """
        file = folder / CONFIG_FILE
        if not file.is_file():
            return None
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            known = CheckpointConfig.__dataclass_fields__
            config = CheckpointConfig(**{k: v for k, v in values.items() if k in known})
            Generation(config.prompt_format)
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{file} is damaged ({error}); restore it, or train again"
            ) from error
        return config

    def write(self, folder: Path) -> None:
        """Write the record into `folder`."""
        text = to_json(asdict(self), indent=2, sort_keys=True)
        write_text_atomically(folder / CONFIG_FILE, text + "\n")


def load_model(
    path: str | Path,
    checkpoint: str | Path | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    quantization_bit: int | str | None = None,
    quantization_backend: str | None = None,
) -> PreTrainedModel:
    """Load a ChatGLM with its prefix, if it has one.

    Args:
        path: a folder (a merged one brings its own prefix), a hub id, or `tiny`.
        checkpoint: a folder with a trained prefix.
        dtype: precision of the base, by default what suits the device; the prefix is float32.
        device: by default the first card, else the CPU.
        quantization_bit: hold the base's linear layers in 4 or 8 bits, `nf4`, or `none`; by default
            as the prefix was trained, else as the folder holds them.
        quantization_backend: one of `registry.BACKENDS`; by default the fastest that works.

    Returns:
        A transformers model in evaluation mode, in which only the prefix requires a gradient.

    Raises:
        PTuneError: what is missing, damaged or does not fit together.
    """
    base = find_base_model(path)
    folder = None if checkpoint is None else Path(checkpoint)
    chosen = choose_device(device)
    bits = trained_bits(base, folder, quantization_bit)
    with memory_advice(SMALLER_WEIGHTS):
        model = build_model(base, choose_dtype(dtype, chosen), chosen, bits, quantization_backend)
        if folder is not None:
            check_fingerprint(base, folder)
            load_prefix(model, folder, base)
        elif base.config.get("pre_seq_len"):
            load_prefix(model, base.path, base)
    return model


def attach_prefix(model: PreTrainedModel, prefix: PrefixEncoder) -> None:
    """Put a prefix in front of a frozen model; its parameters become the trainable ones."""
    decoder = model.base_model
    decoder.prefix_encoder = prefix.to(device=model.device, dtype=torch.float32)
    model.config.pre_seq_len = prefix.pre_seq_len
    model.config.prefix_projection = prefix.prefix_projection
    prefix.requires_grad_(True)
    prefix.train(model.training)


def load_prefix(
    model: PreTrainedModel, folder: Path, base: BaseModel, dropout: float = 0.0
) -> PrefixEncoder:
    """Read a prefix and attach it; length and projection follow from the tensors' shapes.

    Raises:
        CheckpointError: no prefix there, an incomplete one, or one of another model.
    """
    prefix = build_prefix(model.base_model.prefix_shape, folder, base, dropout)
    attach_prefix(model, prefix)
    return prefix


def build_prefix(
    shape: PrefixShape, folder: Path, base: BaseModel, dropout: float = 0.0
) -> PrefixEncoder:
    """Read a prefix without a model to attach it to.

    Args:
        shape: what `base` demands.
        folder: of the checkpoint.
        base: named in errors.
        dropout: of the prefix, in training.

    Raises:
        CheckpointError: no prefix there, an incomplete one, or one of another model.
    """
    state = read_prefix(folder)
    pre_seq_len, prefix_projection = prefix_form(state)
    prefix = PrefixEncoder(shape, pre_seq_len, prefix_projection, dropout)
    expected = {name: tuple(p.shape) for name, p in prefix.state_dict().items()}
    if missing := expected.keys() - state.keys():
        raise CheckpointError(
            f"the prefix in {folder} lacks {', '.join(sorted(missing))}; "
            "the checkpoint is incomplete, take another one"
        )
    found = {name: tuple(state[name].shape) for name in expected}
    if wrong := [name for name in expected if found[name] != expected[name]]:
        name = wrong[0]
        config = CheckpointConfig.read(folder)
        origin = f" (trained on {config.base_model})" if config else ""
        raise CheckpointError(
            f"{name} {list(found[name])} of the prefix in {folder}{origin} does not fit "
            f"{base.name}, which takes {list(expected[name])}; "
            "pass the base model that this prefix was trained on"
        )
    if wrong := [name for name in expected if not state[name].isfinite().all()]:
        raise CheckpointError(
            f"{wrong[0]} of the prefix in {folder} holds numbers that are not finite; "
            "take an earlier checkpoint, or train again"
        )
    prefix.load_state_dict({name: state[name].float() for name in expected})
    return prefix


def prefix_form(state: dict[str, Tensor]) -> tuple[int, bool]:
    """Length of a prefix, and whether it has a projection, from its tensors' names and shapes."""
    embedding = state.get("embedding.weight")
    length = embedding.shape[0] if embedding is not None and embedding.dim() else 1
    return length, "trans.0.weight" in state


def read_prefix(folder: Path) -> dict[str, Tensor]:
    """Read a prefix's tensors by their names inside the encoder (`embedding.weight`, ...).

    Raises:
        CheckpointError: no checkpoint there, or one without a prefix.
    """
    folder = find_checkpoint(folder)
    own = folder / PREFIX_FILE
    try:
        files = WeightFiles(folder, [own] if own.is_file() else None)
        names = [name for name in files.names if OFFICIAL_KEY in name]
        state = {n.split(OFFICIAL_KEY)[1]: t.clone() for n, t in files.items(names)}
    except ModelError as error:
        raise CheckpointError(str(error)) from error
    if not state:
        raise CheckpointError(
            f"{folder} holds weights but no {OFFICIAL_KEY}*; it is no P-Tuning checkpoint, "
            "pass a folder that training wrote, or pass this one with --model"
        )
    return state


def find_checkpoint(folder: Path) -> Path:
    """Accept a checkpoint, or a training output whose last checkpoint is meant.

    Raises:
        CheckpointError: neither; names what is there.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"checkpoint {folder} is not a folder here; pass what `ptune train --output` wrote"
        )
    if (folder / PREFIX_FILE).is_file() or has_weights(folder):
        return folder
    if steps := numbered_checkpoints(folder):
        return steps[-1]
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise CheckpointError(
        f"no checkpoint in {folder} (found {found}); pass a folder with {PREFIX_FILE}, "
        "pytorch_model.bin or model.safetensors"
    )


def numbered_checkpoints(output: Path) -> list[Path]:
    """The `checkpoint-N` folders of a training output, oldest first; unfinished ones left out."""
    found = [
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in output.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit()
        and ((path / PREFIX_FILE).is_file() or has_weights(path))
    ]
    return [path for _, path in sorted(found)]


def save_prefix(model: PreTrainedModel, folder: Path) -> None:
    """Write a model's prefix under the official key names."""
    state = model.base_model.prefix_encoder.state_dict()
    tensors = {OFFICIAL_KEY + n: t.detach().float().cpu().contiguous() for n, t in state.items()}
    save_tensors(tensors, folder / PREFIX_FILE)


def fingerprint(base: BaseModel) -> str:
    """Tell base models apart by their layer norms, a few hundred kilobytes of every checkpoint.

    They are the same in each file format and precision, and in quantized copies of a model.

    Returns:
        A SHA-256 in hexadecimal, of the norms in bfloat16 by official name.
    """
    files = WeightFiles(base.path)
    norms = [name for name in files.names if "layernorm" in name]
    digest = hashlib.sha256()
    for name, tensor in sorted(files.items(norms), key=lambda item: item[0]):
        digest.update(name.encode())
        digest.update(tensor.half().bfloat16().contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def check_fingerprint(base: BaseModel, folder: Path) -> None:
    """Refuse a prefix that ptune trained on another model.

    Raises:
        CheckpointError: naming both models.
    """
    config = CheckpointConfig.read(find_checkpoint(folder))
    if config is None or config.fingerprint == (found := fingerprint(base)):
        return
    raise CheckpointError(
        f"the prefix in {folder} was trained on {config.base_model} "
        f"(fingerprint {config.fingerprint[:12]}), not on {base.name} "
        f"({found[:12]}); pass the model it was trained on with --model"
    )


def training_record(base: BaseModel, checkpoint: Path | None) -> CheckpointConfig | None:
    """How a checkpoint, or without one a merged model, was trained; None if nothing says so."""
    return CheckpointConfig.read(find_checkpoint(checkpoint) if checkpoint else base.path)


def trained_bits(base: BaseModel, checkpoint: Path | None, wanted: int | str | None) -> str | None:
    """The bits to hold a base in: those wanted, else those that its prefix was trained with."""
    if wanted is not None:
        return str(wanted)
    record = training_record(base, checkpoint)
    return record.settings.get("quantization_bit") if record else None


def prompt_format(base: BaseModel, checkpoint: Path | None) -> Generation:
    """The prompt that a checkpoint, or a merged model, was trained with; else the generation's."""
    config = training_record(base, checkpoint)
    return Generation(config.prompt_format) if config else base.generation


def resolve_base(model: str | None, checkpoint: Path | None) -> str:
    """The base model to load: the one given, else the one that the checkpoint was trained on.

    Raises:
        CheckpointError: neither says which.
    """
    if model is not None:
        return model
    if checkpoint is None:
        raise CheckpointError("no model is given; pass --model DIR or --checkpoint DIR")
    folder = find_checkpoint(checkpoint)
    config = CheckpointConfig.read(folder)
    if config is None:
        raise CheckpointError(
            f"no {CONFIG_FILE} in {folder}, so its base model is unknown; pass it with --model"
        )
    return config.base_model
