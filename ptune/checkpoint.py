"""Prefix checkpoints, ptune's and the original's, and models loaded with them.

A checkpoint is a folder with `prefix_encoder.safetensors` (official key names, float32) and
`ptune_config.json`.  The original's are read too: `pytorch_model.bin` or `model.safetensors` with
`transformer.prefix_encoder.*`, alone or inside a whole model.  docs/checkpoint-format.md has both.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptune import __version__
from ptune.base.folder import BaseModel, find_base_model
from ptune.base.weights import WeightFiles, has_weights, is_finite, save_tensors
from ptune.config.resolve import check_recorded
from ptune.config.settings import PROMPT_FORMATS
from ptune.device.full_memory import SMALLER_WEIGHTS, memory_advice
from ptune.device.precision import choose_device, choose_dtype
from ptune.errors import CheckpointError, ModelError
from ptune.files.atomic import write_text_atomically
from ptune.files.json_object import read_json_object
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
        """Read a checkpoint's metadata; None for one that the original code left.

        Raises:
            CheckpointError: the file is damaged.
        """
        file = folder / CONFIG_FILE
        if not file.is_file():
            return None
        try:
            values = read_json_object(file)
            known = CheckpointConfig.__dataclass_fields__
            config = CheckpointConfig(**{k: v for k, v in values.items() if k in known})
            config._check()
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{file} is damaged ({error}); restore it, or train again"
            ) from error
        return config

    def _check(self) -> None:
        """Raise a ValueError for a value that `ptune train` never records."""
        for name in ("base_model", "fingerprint", "prompt_format", "ptune_version"):
            if not (isinstance(getattr(self, name), str) and getattr(self, name)):
                raise ValueError(f"{name} {getattr(self, name)!r} is no text")
        if self.prompt_format not in PROMPT_FORMATS:
            raise ValueError(f"prompt_format {self.prompt_format!r} is unknown")
        if type(self.pre_seq_len) is not int or self.pre_seq_len < 1:
            raise ValueError(f"pre_seq_len {self.pre_seq_len!r} is no whole number above 0")
        if type(self.prefix_projection) is not bool:
            raise ValueError(f"prefix_projection {self.prefix_projection!r} is not true or false")
        if not isinstance(self.settings, dict):
            raise ValueError(f"settings {self.settings!r} are no JSON object")
        check_recorded(self.settings)

    def write(self, folder: Path) -> None:
        """Write the metadata into `folder`."""
        text = to_json(asdict(self), indent=2, sort_keys=True)
        write_text_atomically(folder / CONFIG_FILE, text + "\n")


def load_model(
    path: str | Path,
    checkpoint: str | Path | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    quantization_bit: int | str | None = None,
    quantization_backend: str | None = None,
    prompt_format: str | None = None,
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
        prompt_format: `chatglm`, `chatglm2` or `chatglm3`, where neither the folder nor the
            checkpoint says which the model is.

    Returns:
        A transformers model in evaluation mode, in which only the prefix requires a gradient.

    Raises:
        PTuneError: what is missing, damaged or does not fit together.
    """
    folder = None if checkpoint is None else Path(checkpoint)
    base = find_base(str(path), folder, prompt_format)
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
    prefix = PrefixEncoder(shape, max(1, pre_seq_len), prefix_projection, dropout)
    expected = {name: tuple(p.shape) for name, p in prefix.state_dict().items()}
    if missing := expected.keys() - state.keys():
        raise CheckpointError(
            f"the prefix in {folder} lacks {', '.join(sorted(missing))}; "
            "the checkpoint is incomplete, take another one"
        )
    if unused := state.keys() - expected.keys():
        raise CheckpointError(
            f"the prefix in {folder} holds {', '.join(sorted(unused))}, which no part of a "
            "prefix takes; take another checkpoint"
        )
    for name, tensor in state.items():
        _check_prefix_tensor(name, tensor, expected[name], folder, base)
    _check_claims(find_checkpoint(folder), prefix)
    prefix.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return prefix


def _check_prefix_tensor(
    name: str, tensor: Tensor, expected: tuple[int, ...], folder: Path, base: BaseModel
) -> None:
    if tuple(tensor.shape) != expected:
        config = CheckpointConfig.read(folder)
        origin = f" (trained on {config.base_model})" if config else ""
        raise CheckpointError(
            f"{name} {list(tensor.shape)} of the prefix in {folder}{origin} does not fit "
            f"{base.name}, which takes {list(expected)}; "
            "pass the base model that this prefix was trained on"
        )
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"{name} of the prefix in {folder} holds {tensor.dtype}, not numbers in floating "
            "point; take another checkpoint"
        )
    if not is_finite(tensor.float()):
        raise CheckpointError(
            f"{name} of the prefix in {folder} holds NaN or infinity, its training failed; "
            "take an earlier checkpoint"
        )


def _check_claims(folder: Path, prefix: PrefixEncoder) -> None:
    """Compare what the files beside a prefix say of it with its tensors."""
    for name in (CONFIG_FILE, "config.json"):
        try:
            claims = read_json_object(folder / name) if (folder / name).is_file() else {}
        except ValueError as error:
            raise CheckpointError(f"{folder / name} {error}; restore it") from error
        for field_name in ("pre_seq_len", "prefix_projection"):
            claimed, held = claims.get(field_name), getattr(prefix, field_name)
            if claimed is not None and claimed != held:
                raise CheckpointError(
                    f"{field_name} {claimed} in {folder / name} does not go with the prefix beside "
                    f"it, which has {held}; take all files of one checkpoint"
                )


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
    if len(state) < len(names):
        raise CheckpointError(
            f"{folder} holds more than one prefix ({', '.join(names[:3])} ...); "
            "take a checkpoint with one"
        )
    if not state:
        raise CheckpointError(
            f"{folder} holds weights but no {OFFICIAL_KEY}*; it is no P-Tuning checkpoint, "
            "pass a folder that training wrote, or pass this one with --model"
        )
    return state


def has_prefix(base: BaseModel) -> bool:
    """Whether a model is a merged one, with a prefix among its weights."""
    return any(OFFICIAL_KEY in name for name in WeightFiles(base.path).names)


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
    for name, tensor in sorted(files.items(norms)):
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


def training_metadata(base: BaseModel, checkpoint: Path | None) -> CheckpointConfig | None:
    """How a checkpoint, or without one a merged model, was trained; None if nothing says so."""
    return CheckpointConfig.read(find_checkpoint(checkpoint) if checkpoint else base.path)


def trained_bits(base: BaseModel, checkpoint: Path | None, wanted: int | str | None) -> str | None:
    """The bits to hold a base in: those wanted, else those that its prefix was trained with."""
    if wanted is not None:
        return str(wanted)
    metadata = training_metadata(base, checkpoint)
    return metadata.settings.get("quantization_bit") if metadata else None


def find_base(
    model: str | None,
    checkpoint: Path | None,
    prompt_format: str | None = None,
    weights: bool = True,
) -> BaseModel:
    """Find the base model of a checkpoint, and see that it is of the same generation.

    Args:
        model: the one given; None takes what the checkpoint was trained on.
        checkpoint: the folder of a prefix; None for a bare or merged model.
        prompt_format: of `--prompt-format`.
        weights: as in `find_base_model`.

    Raises:
        PTuneError: from `resolve_base` and `find_base_model`.
        CheckpointError: the prefix was trained with the prompt of another generation.
    """
    name = resolve_base(model, checkpoint)
    metadata = CheckpointConfig.read(find_checkpoint(checkpoint)) if checkpoint else None
    trained = metadata.prompt_format if metadata else None
    base = find_base_model(name, weights, prompt_format, trained)
    check_prompt_format(base, checkpoint)
    return base


def check_prompt_format(base: BaseModel, checkpoint: Path | None) -> None:
    """Refuse a prefix, or a merged model, that was trained with another generation's prompt.

    Raises:
        CheckpointError: naming both.
    """
    metadata = training_metadata(base, checkpoint)
    if metadata and metadata.prompt_format != base.generation.value:
        raise CheckpointError(
            f"the prefix in {checkpoint or base.path} was trained with the prompt of "
            f"{metadata.prompt_format}, but {base.name} is of {base.generation.value}; "
            "pass the model it was trained on with --model"
        )


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
