"""The settings of every command: one dataclass a command, one default a setting.

Precedence: defaults, then the YAML file of `--config`, then flags.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ptune.data.prompt import TRUNCATIONS, TURNS
from ptune.errors import ConfigError

S = TypeVar("S")

DTYPE_NAMES = ("float32", "float16", "bfloat16")
QUANTIZATION_BITS = ("4", "8", "nf4", "none")


def setting(default: Any, help: str, short: str | None = None) -> Any:
    """Declare a setting: its default, the text that `--help` shows, and a one-letter flag."""
    return dataclasses.field(default=default, metadata={"help": help, "short": short})


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """`ptune train`; the defaults are the original's train.sh."""

    data: tuple[Path, ...] = setting((), "Training data; several files are mixed.", "-d")
    model: str = setting("THUDM/chatglm-6b", "Folder, hub id, or `tiny`.", "-m")
    eval_data: tuple[Path, ...] = setting((), "Development data, for eval_loss.")
    output: Path | None = setting(None, "Folder to write; by default named after the run.", "-o")
    pre_seq_len: int = setting(128, "Length of the prefix in tokens.")
    prefix_projection: bool = setting(False, "Compute the prefix by a two-layer MLP.")
    prefix_dropout: float = setting(0.1, "Dropout on the prefix.")
    learning_rate: float = setting(2e-2, "Peak rate; it falls linearly to zero.")
    max_steps: int = setting(3000, "Optimizer steps; --epochs takes its place.")
    epochs: float | None = setting(None, "Passes over the data, in place of --max-steps.")
    batch_size: int = setting(16, "Records per optimizer step, over all cards.")
    micro_batch_size: str | int = setting(
        "auto", "Records computed at once: a divisor of the batch, or what fits into memory."
    )
    max_source_length: int = setting(64, "Tokens of the prompt side.")
    max_target_length: int | None = setting(
        None, "Tokens of the response side; 64, and 128 for ChatGLM2 and 3."
    )
    truncation: str = setting(
        TURNS, "`turns` drops the oldest turns first; `original` cuts as the original did."
    )
    save_steps: int = setting(1000, "Steps between checkpoints; the last step is always saved.")
    save_total_limit: int = setting(3, "Checkpoints to keep.")
    logging_steps: int = setting(10, "Steps between log lines.")
    eval_steps: int | None = setting(
        None, "Steps between evaluations of eval_loss; by default --save-steps."
    )
    warmup_steps: int = setting(0, "Steps in which the learning rate rises.")
    seed: int = setting(42, "Seed of prefix, order and dropout.")
    shuffle: bool = setting(True, "Shuffle the records; else they come in file order.")
    dtype: str | None = setting(
        None, "Precision of the base: float32, float16, bfloat16; by default what the card has."
    )
    device: str | None = setting(None, "cpu, cuda or cuda:N; by default the first card.")
    quantization_bit: str | None = setting(
        None, "Hold the base in 4 or 8 bits, in nf4, or in none; by default as its folder does."
    )
    quantization_backend: str | None = setting(
        None, "Way to restore 4 and 8 bits: nvrtc, triton, torch, cpm; by default the fastest."
    )
    init_prefix: Path | None = setting(None, "Start from the prefix of this checkpoint.")
    resume: bool = setting(False, "Go on from the last checkpoint in --output.")
    gradient_checkpointing: bool = setting(False, "Less memory for a third more time.")
    report_to: str = setting("none", "Loggers of transformers, e.g. tensorboard.")
    prompt_column: str | None = setting(None, "Column of the prompt; found by itself.")
    response_column: str | None = setting(None, "Column of the response; found by itself.")
    history_column: str | None = setting(None, "Column of earlier [question, answer] pairs.")
    skip_bad_records: bool = setting(False, "Leave bad records out, and count them.")

    def __post_init__(self) -> None:
        """Check what can be checked without model and data."""
        if not self.data:
            raise ConfigError("--data is missing; pass the training file, e.g. --data train.json")
        _positive(self, "pre_seq_len", "learning_rate", "max_steps", "batch_size", "save_steps")
        _positive(self, "save_total_limit", "logging_steps", "epochs", "eval_steps")
        _micro_batch(self)
        _lengths(self)
        _quantization(self)
        if not 0 <= self.prefix_dropout < 1:
            raise ConfigError(f"prefix_dropout {self.prefix_dropout} is not in [0, 1); use 0.1")
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps {self.warmup_steps} is negative; use 0 or more")
        if self.init_prefix and self.resume:
            raise ConfigError(
                "--init-prefix and --resume exclude each other; --resume takes the prefix of the "
                "checkpoint it goes on from"
            )

    @property
    def micro_batch(self) -> int | None:
        """Records computed at once; None leaves it to the memory."""
        return None if self.micro_batch_size == "auto" else int(self.micro_batch_size)


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """`ptune eval`."""

    checkpoint: Path | None = setting(None, "Folder with a trained prefix.", "-c")
    data: tuple[Path, ...] = setting((), "Data to evaluate; by default what training named.", "-d")
    model: str | None = setting(None, "Base or merged model; by default what training named.", "-m")
    output: Path | None = setting(None, "Folder to write; by default inside --checkpoint.", "-o")
    batch_size: int = setting(16, "Records generated at once.")
    max_source_length: int | None = setting(None, "Tokens of the prompt; as in training, else 64.")
    max_new_tokens: int | None = setting(
        None, "Longest answer in tokens; by default the response length of training."
    )
    max_samples: int | None = setting(None, "Evaluate only the first records.")
    do_sample: bool = setting(False, "Sample as the original did; else greedy, repeatable.")
    top_p: float = setting(0.7, "With --do-sample: nucleus of the distribution.")
    temperature: float = setting(0.95, "With --do-sample: flattens or sharpens it.")
    seed: int = setting(42, "With --do-sample: seed.")
    prefix: bool = setting(True, "Use the prefix; --no-prefix evaluates the bare model.")
    truncation: str | None = setting(None, "As in training, else `turns`.")
    dtype: str | None = setting(None, "Precision of the base, as in `ptune train`.")
    device: str | None = setting(None, "cpu, cuda or cuda:N; by default the first card.")
    quantization_bit: str | None = setting(
        None, "Hold the base in 4 or 8 bits, in nf4, or in none; by default as in training."
    )
    quantization_backend: str | None = setting(
        None, "Way to restore 4 and 8 bits: nvrtc, triton, torch, cpm; by default the fastest."
    )
    prompt_column: str | None = setting(None, "Column of the prompt; found by itself.")
    response_column: str | None = setting(None, "Column of the response; found by itself.")
    history_column: str | None = setting(None, "Column of earlier [question, answer] pairs.")
    skip_bad_records: bool = setting(False, "Leave bad records out, and count them.")
    json: bool = setting(False, "Print the results as JSON.")

    def __post_init__(self) -> None:
        """Check what can be checked without model and data."""
        if self.checkpoint is None and self.model is None:
            raise ConfigError(
                "pass --checkpoint DIR (a trained prefix) or --model DIR (a merged one)"
            )
        _positive(self, "batch_size", "max_source_length", "max_new_tokens", "max_samples")
        _sampling(self)
        _lengths(self)
        _quantization(self)


@dataclasses.dataclass(frozen=True)
class ChatSettings:
    """`ptune chat`."""

    checkpoint: Path | None = setting(None, "Folder with a trained prefix.", "-c")
    model: str | None = setting(None, "Base or merged model; by default what training named.", "-m")
    max_new_tokens: int = setting(512, "Longest answer in tokens.")
    do_sample: bool = setting(True, "Sample; --no-do-sample gives the same answer every time.")
    top_p: float = setting(0.7, "Nucleus of the distribution.")
    temperature: float = setting(0.95, "Flattens or sharpens the distribution.")
    seed: int | None = setting(None, "Seed, for answers that can be repeated.")
    system: str = setting("", "Instruction in front of the first turn.")
    dtype: str | None = setting(None, "Precision of the base, as in `ptune train`.")
    device: str | None = setting(None, "cpu, cuda or cuda:N; by default the first card.")
    quantization_bit: str | None = setting(
        None, "Hold the base in 4 or 8 bits, in nf4, or in none; by default as in training."
    )
    quantization_backend: str | None = setting(
        None, "Way to restore 4 and 8 bits: nvrtc, triton, torch, cpm; by default the fastest."
    )

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        if self.checkpoint is None and self.model is None:
            raise ConfigError(
                "pass --checkpoint DIR (a trained prefix) or --model DIR (a base or merged model)"
            )
        _positive(self, "max_new_tokens")
        _sampling(self)
        _quantization(self)


@dataclasses.dataclass(frozen=True)
class MergeSettings:
    """`ptune merge`."""

    checkpoint: Path = setting(Path(), "Folder with a trained prefix.", "-c")
    output: Path = setting(Path(), "Folder to write; it must not exist yet.", "-o")
    model: str | None = setting(None, "Base model; by default what training named.", "-m")
    format: str = setting("safetensors", "Of the weight files: safetensors or bin.")
    max_shard_size: str = setting("2GB", "Largest weight file, e.g. 500MB, 5GB.")
    quantization_bit: str | None = setting(
        None, "Write the base in the official 4 or 8 bits, or in none; by default as in training."
    )

    def __post_init__(self) -> None:
        """Check what can be checked without files."""
        for name in ("checkpoint", "output"):
            if getattr(self, name) == Path():
                raise ConfigError(f"--{name} is missing; pass --checkpoint DIR --output NEW_DIR")
        if self.format not in ("safetensors", "bin"):
            raise ConfigError(f"format {self.format!r} is unknown; use safetensors or bin")
        _quantization(self)


@dataclasses.dataclass(frozen=True)
class PreviewSettings:
    """`ptune preview`."""

    data: tuple[Path, ...] = setting((), "Data to look at.", "-d")
    model: str = setting("THUDM/chatglm-6b", "Folder, hub id, or `tiny`; only its tokenizer.", "-m")
    records: int = setting(3, "How many records to show token by token.", "-n")
    max_source_length: int = setting(64, "Tokens of the prompt side.")
    max_target_length: int | None = setting(None, "Tokens of the response side; as in train.")
    truncation: str = setting(TURNS, "As in `ptune train`.")
    prompt_column: str | None = setting(None, "Column of the prompt; found by itself.")
    response_column: str | None = setting(None, "Column of the response; found by itself.")
    history_column: str | None = setting(None, "Column of earlier [question, answer] pairs.")
    skip_bad_records: bool = setting(False, "Leave bad records out, and count them.")
    json: bool = setting(False, "Print every record as one line of JSON, and nothing else.")

    def __post_init__(self) -> None:
        """Check what can be checked without tokenizer and data."""
        if not self.data:
            raise ConfigError("--data is missing; pass the file to look at, e.g. --data train.json")
        _positive(self, "records")
        _lengths(self)


@dataclasses.dataclass(frozen=True)
class DoctorSettings:
    """`ptune doctor`."""

    model: str | None = setting(None, "Look at this folder, hub id, or `tiny`, too.", "-m")
    json: bool = setting(False, "Print everything as JSON, and nothing else.")


@dataclasses.dataclass(frozen=True)
class EstimateSettings:
    """`ptune estimate`; what `ptune train` has, too, has its default."""

    model: str = setting("THUDM/chatglm-6b", "Folder, hub id, or `tiny`; only config.json.", "-m")
    card: str | None = setting(None, "Card, e.g. P100-16GB; by default the one at hand.", "-c")
    pre_seq_len: int = setting(128, "Length of the prefix in tokens.")
    prefix_projection: bool = setting(False, "Compute the prefix by a two-layer MLP.")
    batch_size: int = setting(16, "Records per optimizer step.")
    micro_batch_size: str | int = setting(
        "auto", "Records computed at once: a divisor of the batch, or what fits the card."
    )
    max_source_length: int = setting(64, "Tokens of the prompt side.")
    max_target_length: int | None = setting(None, "Tokens of the response side; as in train.")
    chat_length: int = setting(2048, "Tokens of a chat: all questions and answers so far.")
    dtype: str | None = setting(None, "Precision of the base: float32, float16 or bfloat16.")
    quantization_bit: str | None = setting(
        None, "Only these weights: 4, 8, nf4 or none; by default none, 8 and 4."
    )
    gradient_checkpointing: bool = setting(False, "Only with gradient checkpointing.")
    json: bool = setting(False, "Print everything as JSON, in bytes, and nothing else.")

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        _positive(self, "pre_seq_len", "batch_size")
        _micro_batch(self)
        _lengths(self)
        _quantization(self)
        if self.chat_length < 8:
            raise ConfigError(
                f"chat_length {self.chat_length} leaves no room for text; use 8 or more"
            )

    @property
    def micro_batch(self) -> int | None:
        """Records computed at once; None leaves it to the card."""
        return None if self.micro_batch_size == "auto" else int(self.micro_batch_size)


def resolve(kind: type[S], flags: Mapping[str, Any], config_file: Path | None = None) -> S:
    """Build settings from the defaults, a YAML file and flags, in rising precedence.

    Args:
        kind: one of the dataclasses above.
        flags: by setting name; None means not given.
        config_file: a YAML mapping from setting names (`-` and `_` are the same) to values.

    Raises:
        ConfigError: an unknown key, with the nearest known one, or a value of a wrong type.
    """
    values = _read_yaml(kind, config_file) if config_file else {}
    values |= {name: value for name, value in flags.items() if value is not None}
    return kind(**values)


def _read_yaml(kind: type[Any], file: Path) -> dict[str, Any]:
    import yaml

    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"config file {file} cannot be read ({reason}); pass a YAML file"
        ) from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"config file {file} holds no settings; write lines of `name: value`")
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in loaded.items():
        name = str(key).replace("-", "_")
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1, cutoff=0)
            raise ConfigError(f"{key!r} in {file} is no setting; did you mean {near[0]!r}?")
        values[name] = _convert(value, hints[name], name, file)
    return values


def _convert(value: Any, hint: Any, name: str, file: Path) -> Any:
    """Give a YAML value the type of its setting; YAML reads 2e-2 as text."""
    if typing.get_origin(hint) is types.UnionType:
        if value is None:
            return None
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if value is None:
        raise ConfigError(f"{name} in {file} has no value; write one, or leave the line out")
    if typing.get_origin(hint) is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_convert(item, Path, name, file) for item in items)
    wrong = ConfigError(
        f"{name} {value!r} in {file} is not of type {hint.__name__}; write e.g. {name}: "
        + {bool: "true", int: "16", float: "0.02"}.get(hint, "text")
    )
    if hint is bool or isinstance(value, bool):
        if not (hint is bool and isinstance(value, bool)):
            raise wrong
        return value
    if isinstance(value, (list, dict)):
        raise wrong
    try:
        if hint is int and float(value) != int(float(value)):
            raise wrong
        return int(float(value)) if hint is int else hint(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise wrong from error


def _positive(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:  # so put, nan is refused, too
            raise ConfigError(f"{name} {value} is not positive; use a larger value")


def _micro_batch(settings: TrainSettings | EstimateSettings) -> None:
    try:
        size = settings.micro_batch
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"micro_batch_size {settings.micro_batch_size!r} is neither auto nor a number; "
            f"use auto, or a divisor of {settings.batch_size}"
        ) from error
    if size is None:
        return
    if size <= 0:
        raise ConfigError(f"micro_batch_size {size} is not positive; use a larger value")
    if settings.batch_size % size:
        raise ConfigError(
            f"batch_size {settings.batch_size} is not a multiple of micro_batch_size {size}; "
            f"use a divisor of {settings.batch_size}"
        )


def _lengths(settings: Any) -> None:
    for name in ("max_source_length", "max_target_length"):
        value = getattr(settings, name, None)
        if value is not None and value < 4:
            raise ConfigError(f"{name} {value} leaves no room for text; use 4 or more")
    if getattr(settings, "truncation", None) not in (*TRUNCATIONS, None):
        raise ConfigError(
            f"truncation {settings.truncation!r} is unknown; use one of {', '.join(TRUNCATIONS)}"
        )
    dtype = getattr(settings, "dtype", None)
    if dtype is not None and dtype not in DTYPE_NAMES:
        raise ConfigError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPE_NAMES)}")


def _quantization(settings: Any) -> None:
    bits = settings.quantization_bit
    if bits not in (*QUANTIZATION_BITS, None):
        raise ConfigError(
            f"quantization_bit {bits!r} is unknown; use one of {', '.join(QUANTIZATION_BITS)}"
        )


def _sampling(settings: Any) -> None:
    if not 0 < settings.top_p <= 1:
        raise ConfigError(f"top_p {settings.top_p} is not in (0, 1]; use 0.7")
    if not settings.temperature > 0:
        raise ConfigError(
            f"temperature {settings.temperature} is not positive; "
            "use --no-do-sample for the likeliest answer"
        )
