"""Lazy reading of a model's weight files: one file or shards, .safetensors or .bin.

Nothing is unpickled: .bin files go through `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ptune.errors import ModelError
from ptune.files.atomic import writing
from ptune.files.json_object import read_json_object

# In the order in which transformers prefers them.
_SINGLE_AND_INDEX = [
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
]
_LFS_MARK = b"version https://git-lfs"
_READ_AT_ONCE = 64 * 2**20  # bytes
_SMALL = 2**20  # values of a tensor that is looked at as a whole
_ROWS = 16  # of how many rows of a larger one, one is looked at
_SAFETENSORS_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FLOATS = set(_SAFETENSORS_FLOATS.values())
_SAFETENSORS_TYPES = _SAFETENSORS_FLOATS | {"I8": "int8", "U8": "uint8", "I32": "int32"}


@dataclass(frozen=True)
class TensorHeader:
    """What a file says of a tensor before its values are read.

    Attributes:
        shape: its sizes.
        dtype: as torch calls it, such as `float16`.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def is_float(self) -> bool:
        """Whether its values are numbers that a weight may have, and not codes."""
        return self.dtype in _FLOATS


class WeightFiles:
    """The tensors of a folder by name, without reading them.

    Args:
        folder: holds `model.safetensors` or `pytorch_model.bin`, or shards and their index.
        files: these files in place of the ones with the usual names.

    Attributes:
        files: all of them.
        names: every tensor and the file that holds it.
        headers: every tensor's shape and type.

    Raises:
        ModelError: no weights, a missing shard, a damaged file, a Git LFS pointer, a tensor twice.
    """

    def __init__(self, folder: Path, files: list[Path] | None = None) -> None:
        self.files = files or _weight_files(folder)
        self.names: dict[str, Path] = {}
        self.headers: dict[str, TensorHeader] = {}
        for file in self.files:
            headers = _headers(file)
            if twice := next((name for name in headers if name in self.names), None):
                raise ModelError(
                    f"{twice} is in {self.names[twice]} and in {file}; "
                    "the files are of several downloads, download them again"
                )
            self.names |= dict.fromkeys(headers, file)
            self.headers |= headers
        self._fetched: set[Path] = set()

    def fetch(self, first: int = 0) -> None:
        """Prefetch a file and the one after it while something else is computed.

        Args:
            first: number of the file.
        """
        for file in self.files[first : first + 2]:
            if file not in self._fetched:
                self._fetched.add(file)
                threading.Thread(target=_fetch, args=(file,), daemon=True).start()

    def items(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Read tensors file by file, so that one shard at a time is open.

        Without `names`, the next shard is prefetched while the tensors of this one are used.

        Args:
            names: only these; by default all.
        """
        wanted = self.names if names is None else {n: self.names[n] for n in names}
        for number, file in enumerate(self.files):
            if names is None:
                self.fetch(number)
            yield from _read(file, [n for n, at in wanted.items() if at == file])


def _fetch(file: Path) -> None:
    """Read a file into the page cache, which then serves the mapped tensors."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError), file.open("rb") as stream:  # whoever needs it complains
        for start in range(0, file.stat().st_size, _READ_AT_ONCE):
            os.posix_fadvise(stream.fileno(), start, _READ_AT_ONCE, os.POSIX_FADV_WILLNEED)


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a .safetensors file, in full or not at all, with the permissions of any other file.

    The library leaves it readable by its owner alone, so that a container of another user could
    not load it.

    Raises:
        OSError: it cannot be written; the disk may be full.
    """
    with writing(file) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(tensors, partial, metadata={"format": "pt"})
        except SafetensorError as error:  # of the system's errors, in words of its own
            raise OSError(str(error).strip().splitlines()[0]) from error
        partial.chmod(mode)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor in floating point holds neither NaN nor infinity; reads it once."""
    if tensor.sum(dim=-1).isfinite().all():
        return True
    # The sum of finite numbers may leave the range of half precision; the extremes never do.
    return all(bound.isfinite() for bound in tensor.aminmax())


def sample(tensor: Tensor) -> Tensor:
    """The rows of a weight that are looked at for NaN while it passes.

    All of them on a card, and of a small one.  On the CPU, to read a large one once more would take
    a tenth of the time of loading; every sixteenth will do, since a failed training spares no row.
    """
    return tensor if tensor.is_cuda or tensor.numel() <= _SMALL else tensor[::_ROWS]


def has_weights(folder: Path) -> bool:
    """Whether `folder` holds a whole model's weight files."""
    return any((folder / name).is_file() for pair in _SINGLE_AND_INDEX for name in pair)


def _weight_files(folder: Path) -> list[Path]:
    for single, index in _SINGLE_AND_INDEX:
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _shards(folder / index)
    raise ModelError(
        f"no weights in {folder} (neither model.safetensors nor pytorch_model.bin, "
        "nor an index of shards); download the model again"
    )


def _shards(index: Path) -> list[Path]:
    _refuse_lfs_pointer(index)
    try:
        weight_map = read_json_object(index)["weight_map"]
        names = sorted({str(Path(name)) for name in weight_map.values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is not an index of shards; download it again") from error
    folder = index.parent
    # A file of that name may be a link: the cache of the hub is made of them.  What the index says
    # leads nowhere.
    if outside := [name for name in names if re.search(r"[/\\:]|^\.{0,2}$", name)]:
        raise ModelError(
            f"{outside[0]} in {index} is no name of a file in its folder; "
            "take the index from the model's own repository"
        )
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(
            f"{len(missing)} of {len(names)} weight files of {index} are missing "
            f"({', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}); "
            f"download them into {folder}"
        )
    return [folder / name for name in names]


def _refuse_lfs_pointer(file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(len(_LFS_MARK)) == _LFS_MARK:
            raise ModelError(
                f"{file} is a Git LFS pointer, not the file itself; "
                f"run `git lfs pull` in {file.parent}, or download the file"
            )


def _damaged(file: Path, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"{file} ({file.stat().st_size:,} bytes) is truncated or damaged ({reason[:120]}); "
        "download it again"
    )


def _headers(file: Path) -> dict[str, TensorHeader]:
    _refuse_lfs_pointer(file)
    if file.suffix != ".safetensors":
        return {
            name: TensorHeader(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in _load_bin(file).items()
        }
    headers = {}
    try:
        with safe_open(file, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118, it is no mapping
                part = stream.get_slice(name)
                kind = part.get_dtype()
                dtype = _SAFETENSORS_TYPES.get(kind, kind)
                headers[name] = TensorHeader(tuple(part.get_shape()), dtype)
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error
    return headers


def _load_bin(file: Path) -> dict[str, Tensor]:
    try:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # Files of before torch 1.6 are no zip archives and cannot be mapped.
            state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "Unsupported operand" not in str(error):
            raise ModelError(
                f"{file} holds more than tensors and is not opened, since it could run code; "
                "take the file from the model's own repository, or a .safetensors file"
            ) from error
        raise _damaged(file, error) from error
    except Exception as error:  # the reader of pickles may stumble over other bytes in any way
        raise _damaged(file, error) from error
    if not isinstance(state, dict):
        raise ModelError(f"{file} holds no tensors by name; take the model's own weight file")
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _read(file: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    if not names:
        return
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as stream:
            for name in names:
                yield name, stream.get_tensor(name)
        return
    state = _load_bin(file)
    for name in names:
        yield name, state[name]
