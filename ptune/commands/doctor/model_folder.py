"""Checks of a model folder: files, tokenizer, shapes of the weights without their data, prefix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from ptune.base.folder import TINY, BaseModel, Generation, find_base_model
from ptune.base.weights import WeightFiles
from ptune.checkpoint.prefix import build_prefix
from ptune.commands.doctor.check import Check, Status
from ptune.commands.doctor.host import GB
from ptune.data.tokenizer import build_tokenizer
from ptune.errors import ModelError, PTuneError, reason_of
from ptune.models.build import empty_model
from ptune.models.weight_check import check_generation, check_weights
from ptune.quantization.layers import stored_bits

_SAMPLE = "你好 ChatGLM"
_NAMES = {
    Generation.CHATGLM: "ChatGLM-6B",
    Generation.CHATGLM2: "ChatGLM2-6B",
    Generation.CHATGLM3: "ChatGLM3-6B",
    Generation.GLM4: "GLM-4-9B",
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
            self.add(name, Status.FAILURE, reason_of(error), "check path and permissions")


def examine_model(name: str, prompt_format: str | None = None) -> ModelReport:
    """Check configuration, tokenizer, weight files, shapes and prefix of a model.

    Args:
        name: a folder, `tiny`, or a hub id, of which only what is on this machine is looked at.
        prompt_format: which generation it is, where the folder does not say.
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
        base = find_base_model(path if from_hub else name, prompt_format=prompt_format)
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
        if base.generation is not Generation.NATIVE:
            check_generation(base, files)
        size = sum(file.stat().st_size for file in files.files)
        count = f"{len(files.files)} file{'s' if len(files.files) > 1 else ''}"
        report.add("weights", Status.OK, f"{count}, {len(files.names)} tensors, {_size(size)}")
        with report.stage("shapes"):
            _check_shapes(base, files, report)
    if base.config.get("pre_seq_len"):
        with report.stage("prefix"):
            _check_prefix(base, report)
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
    kind = _NAMES.get(base.generation) or f"{base.config['model_type']}, of transformers' own,"
    said = f"{kind} in {base.path}"
    if any(base.path.glob("modeling_*.py")):
        said += "; its Python files are not run, trust_remote_code is not needed"
    return said


def _check_tokenizer(base: BaseModel, report: ModelReport) -> None:
    tokenizer = build_tokenizer(base)
    ids = tokenizer.encode_text(_SAMPLE)
    back = tokenizer.decode(ids)
    if back != _SAMPLE:
        file = base.path / base.generation.tokenizer_file
        what = "its tokenizer" if base.generation is Generation.NATIVE else file
        raise ModelError(f"{what} turns {_SAMPLE!r} into {back!r}; download it again")
    said = f"{tokenizer.vocab_size:,} tokens; a text comes back as it was"
    report.add("tokenizer", Status.OK, said)


def _check_shapes(base: BaseModel, files: WeightFiles, report: ModelReport) -> None:
    """Compare names, shapes and types with what config.json asks for."""
    model, _ = empty_model(base)
    native = base.generation is Generation.NATIVE
    if not native:
        check_weights(base, files, model)
    model.tie_weights()  # type: ignore[no-untyped-call]
    report.parameters = sum(parameter.numel() for parameter in model.parameters())
    if native:  # whose names the library translates while it loads them
        said = f"{report.parameters:,} parameters; compared with the files when it is loaded"
        report.add("shapes", Status.OK, said)
        return
    bits = stored_bits(base, files)
    storage = f", in {bits} bits" if bits else ""
    said = f"as config.json asks for: {report.parameters:,} parameters{storage}"
    report.add("shapes", Status.OK, f"{said}; names and shapes were compared, not values")


def _check_prefix(base: BaseModel, report: ModelReport) -> None:
    """Read the prefix that config.json tells of."""
    model, _ = empty_model(base)
    prefix = build_prefix(model.base_model.prefix_shape, base.path, base)
    projection = ", with projection" if prefix.prefix_projection else ""
    report.add("prefix", Status.OK, f"{prefix.pre_seq_len} tokens{projection}; no value is NaN")


def _size(size: int) -> str:
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / 10**6:.0f} MB"
