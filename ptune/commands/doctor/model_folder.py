"""Checks of a model folder: files, tokenizer, and shapes of the weights without their data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor

from ptune.base.folder import TINY, BaseModel, Generation, find_base_model
from ptune.base.weights import WeightFiles
from ptune.commands.doctor.check import Check, Status
from ptune.commands.doctor.host import GB
from ptune.data.tokenizer import build_tokenizer
from ptune.errors import ModelError, PTuneError
from ptune.models.build import check_generation, empty_model
from ptune.quantization.codec import SCALE_SUFFIX
from ptune.quantization.layers import stored_bits

_SAMPLE = "你好 ChatGLM"
_SHOWN = 3  # tensors that are named when many are wrong
_NAMES = {
    Generation.CHATGLM: "ChatGLM-6B",
    Generation.CHATGLM2: "ChatGLM2-6B",
    Generation.CHATGLM3: "ChatGLM3-6B",
}


@dataclass
class ModelReport:
    """The checks of a model, and facts for other checks.

    Attributes:
        checks: the lines so far.
        to_download: whether its weights have yet to come from the hub.
        parameters: how many it has; None if the shapes were not checked.
    """

    checks: list[Check] = field(default_factory=list)
    to_download: bool = False
    parameters: int | None = None

    def add(self, name: str, status: Status, message: str, mend: str = "") -> None:
        """Add a line."""
        self.checks.append(Check("model", name, status, message, mend))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Turn an error of the block into a failed check."""
        try:
            yield
        except PTuneError as error:
            message, _, mend = str(error).rpartition("; ")
            self.add(name, Status.FAILURE, message, mend)
        except OSError as error:
            self.add(name, Status.FAILURE, str(error), "check path and permissions")
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            # A config.json with settings left out or of other types can go wrong anywhere.
            self.add(
                name,
                Status.FAILURE,
                f"config.json describes no ChatGLM ({type(error).__name__}: {error})",
                "download config.json again",
            )


def examine_model(name: str) -> ModelReport:
    """Check configuration, tokenizer, weight files and shapes of a model.

    Args:
        name: a folder, `tiny`, or a hub id, of which only what is on this machine is looked at.
    """
    report = ModelReport()
    base: BaseModel | None = None
    from_hub = name != TINY and not Path(name).expanduser().exists() and _is_hub_id(name)
    with report.stage("folder"):
        path = _cached(name) if from_hub else Path(name)
        if path is None:
            said = f"{name} is no folder here, and not in the cache of downloads"
            report.to_download = True
            report.add("folder", Status.WARNING, said, f"hf download {name}")
            return report
        base = find_base_model(path if from_hub else name)
        report.add("folder", Status.OK, _describe(base))
    if base is None:
        return report
    with report.stage("tokenizer"):
        _check_tokenizer(base, report)
    if from_hub and not _has_weight_file(base.path):
        report.to_download = True
        said = f"the weights of {name} are not in the cache of downloads yet"
        report.add("weights", Status.WARNING, said, f"hf download {name}")
        return report
    with report.stage("weights"):
        files = WeightFiles(base.path)
        check_generation(base, files)
        size = sum(file.stat().st_size for file in files.files)
        count = f"{len(files.files)} file{'s' if len(files.files) > 1 else ''}"
        report.add("weights", Status.OK, f"{count}, {len(files.names)} tensors, {_size(size)}")
        with report.stage("shapes"):
            _check_shapes(base, files, report)
    return report


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def _cached(name: str) -> Path | None:
    """The folder of a hub id in the cache, complete or not; nothing is downloaded."""
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _has_weight_file(folder: Path) -> bool:
    return any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir())


def _describe(base: BaseModel) -> str:
    said = f"{_NAMES[base.generation]} in {base.path}"
    if any(base.path.glob("modeling_*.py")):
        said += "; its Python files are not run, trust_remote_code is not needed"
    return said


def _check_tokenizer(base: BaseModel, report: ModelReport) -> None:
    tokenizer = build_tokenizer(base)
    ids = tokenizer.encode_text(_SAMPLE)
    back = tokenizer.decode(ids)
    if back != _SAMPLE:
        raise ModelError(
            f"{base.path / base.generation.tokenizer_file} turns {_SAMPLE!r} into {back!r}; "
            "download it again"
        )
    said = f"{tokenizer.vocab_size:,} tokens; a text comes back as it was"
    report.add("tokenizer", Status.OK, said)


def _check_shapes(base: BaseModel, files: WeightFiles, report: ModelReport) -> None:
    """Compare names and shapes with what config.json asks for."""
    bits = stored_bits(base, files)
    model, rename = empty_model(base)
    model.tie_weights()  # type: ignore[no-untyped-call]
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    missing, wrong = dict.fromkeys(expected), []
    for official, tensor in _dequantized_shapes(files, bits):
        try:
            parts = rename(official, tensor)
        except RuntimeError:  # query, key and value cannot be split
            wrong.append(f"{official} {list(tensor.shape)}")
            continue
        for name, part in parts.items():
            missing.pop(name, None)
            if name in expected and part.shape != expected[name]:
                wrong.append(f"{official} {list(tensor.shape)}, {name} {list(expected[name])}")
    if wrong:
        raise ModelError(
            f"{base.path} holds {_tensors(len(wrong))} of another shape than config.json asks for "
            f"({'; '.join(wrong[:_SHOWN])}{' ...' if len(wrong) > _SHOWN else ''}); "
            "the two belong to different models, download both again"
        )
    if missing:
        some = ", ".join(list(missing)[:_SHOWN]) + (" ..." if len(missing) > _SHOWN else "")
        raise ModelError(
            f"{base.path} lacks {_tensors(len(missing))} ({some}); "
            "the folder is incomplete or of another model, download it again"
        )
    report.parameters = sum(shape.numel() for shape in expected.values())
    storage = f", in {bits} bits" if bits else ""
    said = f"as config.json asks for: {report.parameters:,} parameters{storage}"
    report.add("shapes", Status.OK, said)


def _dequantized_shapes(files: WeightFiles, bits: int | None) -> Iterator[tuple[str, Tensor]]:
    """All weights on the meta device, quantized ones in their dequantized shape."""
    found = {name: (shape, is_int8) for name, shape, is_int8 in _shapes(files)}
    for name, (shape, is_int8) in found.items():
        if name.removesuffix(SCALE_SUFFIX) != name and name.removesuffix(SCALE_SUFFIX) in found:
            continue
        if is_int8:
            scale, _ = found.get(name + SCALE_SUFFIX, ([], False))
            if bits is None or scale != shape[:1]:
                raise ModelError(
                    f"{name} in {files.names[name]} is quantized, but no {name}{SCALE_SUFFIX} of "
                    f"{shape[0]} values is there; download all files of one model"
                )
            shape = [*shape[:-1], shape[-1] * 8 // bits]
        yield name, torch.empty(shape, device="meta")


def _shapes(files: WeightFiles) -> Iterator[tuple[str, list[int], bool]]:
    """Name, shape and whether it is int8, from the headers of the files."""
    for file in files.files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as stream:
                for name in stream.keys():  # noqa: SIM118, it is no mapping
                    part = stream.get_slice(name)
                    yield name, list(part.get_shape()), part.get_dtype() == "I8"
            continue
        # Mapped into memory: nothing is read until a value is asked for.
        for name, tensor in files.items([n for n, at in files.names.items() if at == file]):
            yield name, list(tensor.shape), tensor.dtype == torch.int8


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"


def _size(size: int) -> str:
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / 10**6:.0f} MB"
