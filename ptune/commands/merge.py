"""One self-contained folder from a base model and what was trained, in the base's own layout.

Of a ChatGLM, the weights keep their names and their precision, or are quantized as the original
does it; the prefix is added as `transformer.prefix_encoder.*` in float32.  The original code loads
the folder too, if the base folder brings its Python files: they are copied as they are, and never
run here.  Of another model, the weights stay as they are and the prefix is a file beside them,
which only ptune reads: for the library the folder is the base.  A LoRA is folded into the weights
of either.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from ptune.base.folder import TINY_FOLDER, BaseModel, Generation
from ptune.base.weights import WeightFiles, is_finite, sample, save_tensors
from ptune.checkpoint.base import check_fingerprint, check_prompt_format, trained_bits
from ptune.checkpoint.folder import PREFIX_FILE, find_checkpoint
from ptune.checkpoint.folding import Folding
from ptune.checkpoint.lora import digest_lora, is_lora
from ptune.checkpoint.metadata import CONFIG_FILE, CheckpointConfig
from ptune.checkpoint.prefix import OFFICIAL_KEY, build_prefix
from ptune.config.size import parse_size
from ptune.data.tokenizer import build_tokenizer
from ptune.errors import ConfigError
from ptune.files.atomic import partials, staging
from ptune.files.json_text import to_json
from ptune.files.lock import LOCK_FILE
from ptune.files.new_folder import check_new_folder
from ptune.models.build import empty_model
from ptune.models.prefix_encoder import PrefixEncoder
from ptune.models.weight_check import check_generation, check_weights, not_finite
from ptune.quantization.codec import SCALE_SUFFIX, quantize
from ptune.quantization.layers import choose_bits, is_quantized_layer, stored_bits

_FILE_PATTERNS = {
    "safetensors": "model{suffix}.safetensors",
    "bin": "pytorch_model{suffix}.bin",
}

# What belongs to a model beside its weights: tokenizer, code, settings, licence.
_COPIED_SUFFIXES = {".py", ".json", ".model", ".jinja", ".tiktoken"}
_VOCABULARIES = {"merges.txt", "vocab.txt"}
_LICENCE = re.compile(r"licen[cs]e|notice", re.IGNORECASE)
# Written anew, or left in the folder by a training run.
_NOT_COPIED = re.compile(
    rf"config\.json|{re.escape(CONFIG_FILE)}|.*\.index\.json|trainer_state\.json|.*_results\.json"
)


def merge(
    base: BaseModel,
    checkpoint: Path,
    output: Path,
    format: str = "safetensors",
    max_shard_size: str = "2GB",
    quantization_bit: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a folder that holds a base model and what was trained beside it.

    Weights are streamed: peak memory is one file of the output.  The folder appears under its name
    when it is whole.

    Args:
        base: from `find_base_model`; its own prefix, if it is a merged one, is replaced.
        checkpoint: a folder with a trained prefix or LoRA.
        output: a folder that does not exist yet, or is empty.
        format: of the weight files, `safetensors` or `bin`.
        max_shard_size: largest weight file, such as 500MB; a single larger tensor gets its own.
        quantization_bit: `4` or `8` writes the official quantized layout, `none` the base as it
            is; by default as the prefix was trained, and of a LoRA none.
        progress: called with the bytes of weights written so far, and in all.

    Returns:
        `output`.

    Raises:
        ConfigError: the output exists or has no room, a format or size that is none, other bits
            than a quantized base has.
        CheckpointError: nothing trained there, or of another model.
        ModelError: damaged or missing files of the base.
    """
    check_new_folder(output, base.path)
    _clear_killed(output)
    plan = _plan(base, checkpoint, _Layout(format, max_shard_size), quantization_bit)
    _check_room(output, plan.bytes)
    try:
        with staging(output) as partial:
            _fill(partial, plan, progress)
    except OSError as error:
        raise ConfigError(
            f"output {output} cannot be written ({error}); make room there, or pass another folder"
        ) from error
    return output


def folding_notice(checkpoint: Path, quantization_bit: str | None) -> str | None:
    """What somebody may not expect of a LoRA that was trained beside weights of a few bits."""
    metadata = CheckpointConfig.read(find_checkpoint(checkpoint))
    bits = metadata.settings.get("quantization_bit") if metadata else None
    if quantization_bit is not None or bits in (None, "none") or not is_lora(checkpoint):
        return None
    held = f"{bits} bits" if bits.isdigit() else bits
    return (
        f"the LoRA was trained beside weights in {held} and is folded into those of the folder as "
        "they are, unquantized; answers may differ in places"
    )


def _fill(folder: Path, plan: _Plan, progress: Callable[[int, int], None] | None) -> None:
    # Held while this process lives: see `_clear_killed`.
    with FileLock(folder / LOCK_FILE, timeout=0):
        _write_weights(folder, plan, progress)
        if plan.base.generation is Generation.NATIVE and plan.prefix:
            save_tensors(_prefix_state(plan.prefix), folder / PREFIX_FILE)
        for file in plan.copied:
            shutil.copyfile(file, folder / file.name)
        _write_json(folder / "config.json", _merged_config(plan))
        if plan.metadata:
            plan.metadata.write(folder)
    (folder / LOCK_FILE).unlink(missing_ok=True)


def _clear_killed(output: Path) -> None:
    """Remove what an earlier merge into the same folder has left, if its process is dead."""
    for folder in partials(output.parent, output.name):
        with contextlib.suppress(OSError, Timeout), FileLock(folder / LOCK_FILE, timeout=0):
            shutil.rmtree(folder, ignore_errors=True)


class _Layout:
    """Names and sizes of the weight files.

    Attributes:
        pattern: of their names, with a place for `-00001-of-00002`.
        shard_bytes: largest file.
    """

    def __init__(self, format: str, max_shard_size: str) -> None:
        if format not in _FILE_PATTERNS:
            raise ConfigError(f"format {format!r} is unknown; use {' or '.join(_FILE_PATTERNS)}")
        self.pattern = _FILE_PATTERNS[format]
        self.shard_bytes = parse_size(max_shard_size, "max_shard_size")


@dataclass(frozen=True)
class _Plan:
    """What a merged folder is to hold; nothing is written yet.

    Attributes:
        base: the base model.
        files: its weights.
        prefix: the trained prefix, or None.
        folding: of the trained LoRA, or None.
        packing: 4 or 8 to quantize the base on the way.
        layout: of the weight files.
        sizes: bytes of every tensor, by official name.
        copied: files of the base that go along.
        metadata: of the checkpoint; None for one that the original code left.
    """

    base: BaseModel
    files: WeightFiles
    prefix: PrefixEncoder | None
    folding: Folding | None
    packing: int | None
    layout: _Layout
    sizes: dict[str, int]
    copied: list[Path]
    metadata: CheckpointConfig | None

    @property
    def bytes(self) -> int:
        """Of the whole folder, about."""
        return sum(self.sizes.values()) + sum(file.stat().st_size for file in self.copied)


def _plan(
    base: BaseModel, checkpoint: Path, layout: _Layout, quantization_bit: str | None
) -> _Plan:
    files = WeightFiles(base.path)
    model, rename = empty_model(base)
    lora = is_lora(checkpoint)
    wanted = quantization_bit if lora else trained_bits(base, checkpoint, quantization_bit)
    if native := base.generation is Generation.NATIVE:
        build_tokenizer(base)
        bits = None if wanted == "none" else wanted
    else:
        check_generation(base, files)
        check_weights(base, files, model)
        if (base.path / base.generation.tokenizer_file).is_file():
            build_tokenizer(base)  # what the folder says of its ids goes along
        bits = choose_bits(base, files, wanted)
    if bits and quantization_bit == bits and (native or bits == "nf4"):
        raise ConfigError(
            f"--quantization-bit {bits} has no file format of its own{' here' if native else ''}; "
            "leave it out, and pass it to `ptune eval` or `ptune chat` of the merged folder"
        )
    check_prompt_format(base, checkpoint)
    check_fingerprint(base, checkpoint)
    prefix = folding = None
    if lora:
        _check_foldable(base, files)
        folding = Folding(base, checkpoint, model, rename, files.headers)
    else:
        prefix = build_prefix(model.base_model.prefix_shape, checkpoint, base)
    packs = not native and bits in ("4", "8") and stored_bits(base, files) is None
    packing = int(bits) if bits and packs else None
    metadata = CheckpointConfig.read(find_checkpoint(checkpoint))
    if metadata and metadata.settings.get("quantization_bit") != bits:
        settings = metadata.settings | {"quantization_bit": bits}
        metadata = dataclasses.replace(metadata, settings=settings)
    if metadata and lora:  # by which the folder is told from its base
        inputs = metadata.inputs | {"lora": digest_lora(checkpoint)}
        metadata = dataclasses.replace(metadata, inputs=inputs)
    kept = [name for name in files.names if OFFICIAL_KEY not in name]
    sizes = _sizes(files, kept, packing)
    if prefix and not native:
        sizes |= {name: tensor.nbytes for name, tensor in _prefix_state(prefix).items()}
    copied = _files_to_copy(base)
    return _Plan(base, files, prefix, folding, packing, layout, sizes, copied, metadata)


def _check_foldable(base: BaseModel, files: WeightFiles) -> None:
    """Refuse weights of a few bits, which a LoRA cannot be added to."""
    if base.generation is not Generation.NATIVE and (bits := stored_bits(base, files)):
        raise ConfigError(
            f"the weights of {base.name} have {bits} bits, into which no LoRA can be folded; pass "
            "the half-precision model with --model"
        )


def _prefix_state(prefix: PrefixEncoder) -> dict[str, Tensor]:
    return {OFFICIAL_KEY + name: tensor for name, tensor in prefix.state_dict().items()}


def _check_room(output: Path, needed: int) -> None:
    at = next(parent for parent in output.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(at).free
    if needed > free:
        raise ConfigError(
            f"output {output} needs {needed / 1e6:,.0f} MB but {at} has {free / 1e6:,.0f} MB free; "
            "make room there, or pass a folder on another disk"
        )


def _files_to_copy(base: BaseModel) -> list[Path]:
    """The base's files without weights; links, as in the hub's cache, count as what they mean."""
    return [
        file
        for file in sorted(base.path.iterdir())
        if file.is_file()
        and not file.name.startswith(".")
        and not _NOT_COPIED.fullmatch(file.name)
        and (
            file.suffix in _COPIED_SUFFIXES
            or file.name in _VOCABULARIES
            or _LICENCE.search(file.name)
        )
        # The built-in model lies among ptune's own code, which is not the model's.
        and not (file.suffix == ".py" and base.path == TINY_FOLDER)
    ]


def _merged_config(plan: _Plan) -> dict[str, Any]:
    base = plan.base
    of_prefix = ("pre_seq_len", "prefix_projection")
    config = {name: value for name, value in base.config.items() if name not in of_prefix}
    if plan.prefix:
        config |= {name: getattr(plan.prefix, name) for name in of_prefix}
    if plan.packing:
        config["quantization_bit"] = plan.packing
        if base.generation is Generation.CHATGLM:
            config["quantization_embeddings"] = False
    if base.generation not in (Generation.CHATGLM, Generation.NATIVE):
        # The later ones differ in little, and the base may owe its name to its folder's.
        config["prompt_format"] = base.generation.value
    return config


def _sizes(files: WeightFiles, names: list[str], packing: int | None) -> dict[str, int]:
    """Bytes of every tensor to write, quantized ones and their scales included."""
    sizes = {}
    for name, tensor in files.items(names):
        if packing and is_quantized_layer(name):
            sizes[name] = tensor.numel() * packing // 8
            sizes[name + SCALE_SUFFIX] = tensor.shape[0] * torch.float16.itemsize
        else:
            sizes[name] = tensor.nbytes
    return sizes


def _read(plan: _Plan, names: list[str]) -> dict[str, Tensor]:
    """The tensors of one file to write; a weight and its scale may fall into different ones."""
    files, packing = plan.files, plan.packing
    sources = {name if name in files.names else name.removesuffix(SCALE_SUFFIX) for name in names}
    state = {}
    for name, stored in files.items(sorted(sources)):
        tensor = plan.folding.fold(name, stored) if plan.folding else stored
        packs = packing is not None and is_quantized_layer(name)
        state[name], held = tensor, sample(tensor)
        if packing is not None and packs:
            state[name], held = quantize(tensor, packing)
            state[name + SCALE_SUFFIX] = held
        if held.is_floating_point() and not is_finite(held):
            raise not_finite(name, tensor, str(packing) if packs else "the file", plan.base)
    return {name: state[name] for name in names}


def _write_weights(folder: Path, plan: _Plan, progress: Callable[[int, int], None] | None) -> None:
    prefix = _prefix_state(plan.prefix) if plan.prefix else {}
    pattern = plan.layout.pattern
    shards = split_state_dict_into_shards_factory(
        plan.sizes,
        get_storage_size=int,
        filename_pattern=pattern,
        max_shard_size=plan.layout.shard_bytes,
    )
    total, done = shards.metadata["total_size"], 0
    for file, names in shards.filename_to_tensors.items():
        if progress:
            progress(done, total)
        base = _read(plan, [name for name in names if name not in prefix])
        state = _separate(base) | {name: prefix[name] for name in names if name in prefix}
        _write_tensors(state, folder / file)
        done += sum(plan.sizes[name] for name in names)
    if progress:
        progress(done, total)
    if shards.is_sharded:
        index = {
            "metadata": shards.metadata,
            "weight_map": dict(sorted(shards.tensor_to_filename.items())),
        }
        _write_json(folder / (pattern.format(suffix="") + ".index.json"), index)


def _separate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share their bytes with others, which no file could hold as it is.

    The rest stays mapped from the input, so that it takes no memory of its own.
    """
    seen: set[int] = set()
    separate = {}
    for name, tensor in state.items():
        shared = tensor.data_ptr() in seen or tensor.untyped_storage().nbytes() != tensor.nbytes
        seen.add(tensor.data_ptr())
        contiguous = tensor.contiguous()
        separate[name] = contiguous.clone() if shared and contiguous is tensor else contiguous
    return separate


def _write_tensors(state: dict[str, Tensor], file: Path) -> None:
    try:
        if file.suffix == ".safetensors":
            save_tensors(state, file)
        else:
            torch.save(state, file)
    except RuntimeError as error:  # a full disk, as torch puts it
        raise OSError(str(error).strip().splitlines()[0]) from error


def _write_json(file: Path, content: dict[str, Any]) -> None:
    text = to_json(content, indent=2)
    file.write_text(text + "\n", encoding="utf-8")
