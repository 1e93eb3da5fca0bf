"""The settings of every command: one dataclass a command, one default a setting.

Settings that several commands have stand in a base class: where the data is and how it is read, how
the base model is held, what decides the memory of a step.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ptune.base.folder import Generation
from ptune.data.prompt import TRUNCATIONS, TURNS
from ptune.data.records import Columns
from ptune.errors import ConfigError

DTYPE_NAMES = ("float32", "float16", "bfloat16")
QUANTIZATION_BITS = ("4", "8", "nf4", "none")
PROMPT_FORMATS = tuple(kind.value for kind in Generation)

# The headings of `--help`, in its order.
DATA, PREFIX, STEPS = "Data", "Prefix", "Steps"
MODEL, ANSWERS, OUTPUT = "Model and memory", "Answers", "Output"
HEADINGS = (DATA, PREFIX, STEPS, MODEL, ANSWERS, OUTPUT)


def setting(heading: str, default: Any, help: str, short: str | None = None) -> Any:
    """Declare a setting: its heading and text in `--help`, its default, and a one-letter flag."""
    metadata = {"heading": heading, "help": help, "short": short}
    return dataclasses.field(default=default, metadata=metadata)


def _prompt_format() -> Any:
    said = "chatglm, chatglm2 or chatglm3: which one the model is, if its folder does not say."
    return setting(MODEL, None, said)


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Data files and how they are read."""

    data: tuple[Path, ...] = setting(DATA, (), "Training data; several files are mixed.", "-d")
    prompt_column: str | None = setting(DATA, None, "Column of the prompt; found by itself.")
    response_column: str | None = setting(DATA, None, "Column of the response; found by itself.")
    history_column: str | None = setting(DATA, None, "Column of earlier [question, answer] pairs.")
    skip_bad_records: bool = setting(DATA, False, "Leave bad records out, and count them.")

    @property
    def columns(self) -> Columns:
        """The column names that were given."""
        return Columns(self.prompt_column, self.response_column, self.history_column)


@dataclasses.dataclass(frozen=True)
class BaseSettings:
    """How the base model is held."""

    dtype: str | None = setting(
        MODEL,
        None,
        "Precision of the base: float32, float16, bfloat16; by default what the card has.",
    )
    device: str | None = setting(MODEL, None, "cpu, cuda or cuda:N; by default the first card.")
    quantization_bit: str | None = setting(
        MODEL,
        None,
        "Hold the base in 4 or 8 bits, in nf4, or in none; by default as its prefix was trained, "
        "else as its folder holds it.",
    )
    quantization_backend: str | None = setting(
        MODEL, None, "Dequantize by nvrtc, triton, torch or cpm; by default by the fastest."
    )
    prompt_format: str | None = _prompt_format()


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What decides the memory of an optimizer step."""

    pre_seq_len: int = setting(PREFIX, 128, "Length of the prefix in tokens.")
    prefix_projection: bool = setting(PREFIX, False, "Compute the prefix by a two-layer MLP.")
    batch_size: int = setting(STEPS, 16, "Records per optimizer step, over all cards.")
    micro_batch_size: str | int = setting(
        MODEL,
        "auto",
        "Records computed at once: a divisor of the batch, or what fits into memory.",
    )
    gradient_checkpointing: bool = setting(MODEL, False, "Less memory for a third more time.")
    max_source_length: int = setting(DATA, 64, "Tokens of the prompt side.")
    max_target_length: int | None = setting(
        DATA, None, "Tokens of the response side; 64, and 128 for ChatGLM2 and 3."
    )

    @property
    def micro_batch(self) -> int | None:
        """Records computed at once; None leaves it to the memory."""
        return None if self.micro_batch_size == "auto" else int(self.micro_batch_size)


@dataclasses.dataclass(frozen=True)
class TrainSettings(BaseSettings, StepSettings, DataSettings):
    """`ptune train`; the defaults are the original's train.sh."""

    model: str = setting(MODEL, "THUDM/chatglm-6b", "Folder, hub id, or `tiny`.", "-m")
    eval_data: tuple[Path, ...] = setting(DATA, (), "Development data, for eval_loss.")
    truncation: str = setting(
        DATA, TURNS, "`turns` drops the oldest turns first; `original` cuts as the original did."
    )
    prefix_dropout: float = setting(PREFIX, 0.1, "Dropout on the prefix.")
    init_prefix: Path | None = setting(PREFIX, None, "Start from the prefix of this checkpoint.")
    learning_rate: float = setting(STEPS, 2e-2, "Peak rate; it falls linearly to zero.")
    warmup_steps: int = setting(STEPS, 0, "Steps in which the learning rate rises.")
    max_steps: int = setting(STEPS, 3000, "Optimizer steps; --epochs takes its place.")
    epochs: float | None = setting(STEPS, None, "Passes over the data, in place of --max-steps.")
    eval_steps: int | None = setting(
        STEPS, None, "Steps between evaluations of eval_loss; by default --save-steps."
    )
    seed: int = setting(STEPS, 42, "Seed of prefix, order and dropout.")
    shuffle: bool = setting(STEPS, True, "Shuffle the records; else they come in file order.")
    output: Path | None = setting(
        OUTPUT, None, "Folder to write; by default named after the run.", "-o"
    )
    resume: bool = setting(OUTPUT, False, "Go on from the last checkpoint in --output.")
    save_steps: int = setting(
        OUTPUT, 1000, "Steps between checkpoints; the last step is always saved."
    )
    save_total_limit: int = setting(OUTPUT, 3, "Checkpoints to keep.")
    logging_steps: int = setting(OUTPUT, 10, "Steps between log lines.")
    report_to: str = setting(OUTPUT, "none", "Loggers of transformers, e.g. tensorboard.")

    def __post_init__(self) -> None:
        """Check what can be checked without model and data."""
        if not self.data:
            raise ConfigError("--data is missing; pass the training file, e.g. --data train.json")
        _positive(self, "pre_seq_len", "learning_rate", "max_steps", "batch_size", "save_steps")
        _positive(self, "save_total_limit", "logging_steps", "epochs", "eval_steps")
        _micro_batch(self)
        _lengths(self)
        _base(self)
        if not 0 <= self.prefix_dropout < 1:
            raise ConfigError(f"prefix_dropout {self.prefix_dropout} is not in [0, 1); use 0.1")
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps {self.warmup_steps} is negative; use 0 or more")
        if self.init_prefix and self.resume:
            raise ConfigError(
                "--init-prefix and --resume exclude each other; --resume takes the prefix of the "
                "checkpoint it goes on from"
            )


@dataclasses.dataclass(frozen=True)
class EvalSettings(BaseSettings, DataSettings):
    """`ptune eval`."""

    data: tuple[Path, ...] = setting(
        DATA, (), "Data to evaluate; by default what training named.", "-d"
    )
    checkpoint: Path | None = setting(MODEL, None, "Folder with a trained prefix.", "-c")
    model: str | None = setting(
        MODEL, None, "Base or merged model; by default what training named.", "-m"
    )
    prefix: bool = setting(MODEL, True, "Use the prefix; --no-prefix evaluates the bare model.")
    max_samples: int | None = setting(DATA, None, "Evaluate only the first records.")
    max_source_length: int | None = setting(
        DATA, None, "Tokens of the prompt; as in training, else 64."
    )
    truncation: str | None = setting(DATA, None, "As in training, else `turns`.")
    batch_size: int = setting(ANSWERS, 16, "Records generated at once.")
    max_new_tokens: int | None = setting(
        ANSWERS, None, "Longest answer in tokens; by default the response length of training."
    )
    do_sample: bool = setting(
        ANSWERS, False, "Sample as the original did; else greedy, repeatable."
    )
    top_p: float = setting(ANSWERS, 0.7, "With --do-sample: nucleus of the distribution.")
    temperature: float = setting(ANSWERS, 0.95, "With --do-sample: flattens or sharpens it.")
    seed: int = setting(ANSWERS, 42, "With --do-sample: seed.")
    output: Path | None = setting(
        OUTPUT, None, "Folder to write; by default inside --checkpoint.", "-o"
    )
    json: bool = setting(OUTPUT, False, "Print the results as JSON.")

    def __post_init__(self) -> None:
        """Check what can be checked without model and data."""
        if self.checkpoint is None and self.model is None:
            raise ConfigError(
                "pass --checkpoint DIR (a trained prefix) or --model DIR (a merged one)"
            )
        _positive(self, "batch_size", "max_source_length", "max_new_tokens", "max_samples")
        _sampling(self)
        _lengths(self)
        _base(self)


@dataclasses.dataclass(frozen=True)
class ChatSettings(BaseSettings):
    """`ptune chat`."""

    checkpoint: Path | None = setting(MODEL, None, "Folder with a trained prefix.", "-c")
    model: str | None = setting(
        MODEL, None, "Base or merged model; by default what training named.", "-m"
    )
    max_new_tokens: int = setting(ANSWERS, 512, "Longest answer in tokens.")
    do_sample: bool = setting(
        ANSWERS, True, "Sample; --no-do-sample gives the same answer every time."
    )
    top_p: float = setting(ANSWERS, 0.7, "Nucleus of the distribution.")
    temperature: float = setting(ANSWERS, 0.95, "Flattens or sharpens the distribution.")
    seed: int | None = setting(ANSWERS, None, "Seed, for answers that can be repeated.")
    system: str = setting(ANSWERS, "", "Instruction in front of the first turn.")

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        if self.checkpoint is None and self.model is None:
            raise ConfigError(
                "pass --checkpoint DIR (a trained prefix) or --model DIR (a base or merged model)"
            )
        _positive(self, "max_new_tokens")
        _sampling(self)
        _base(self)


@dataclasses.dataclass(frozen=True)
class MergeSettings:
    """`ptune merge`."""

    checkpoint: Path = setting(MODEL, Path(), "Folder with a trained prefix.", "-c")
    model: str | None = setting(MODEL, None, "Base model; by default what training named.", "-m")
    prompt_format: str | None = _prompt_format()
    quantization_bit: str | None = setting(
        MODEL,
        None,
        "Write the base in the official 4 or 8 bits, or in none; by default as in training.",
    )
    output: Path = setting(OUTPUT, Path(), "Folder to write; it must not exist yet.", "-o")
    format: str = setting(OUTPUT, "safetensors", "Of the weight files: safetensors or bin.")
    max_shard_size: str = setting(OUTPUT, "2GB", "Largest weight file, e.g. 500MB, 5GB.")

    def __post_init__(self) -> None:
        """Check what can be checked without files."""
        for name in ("checkpoint", "output"):
            if getattr(self, name) == Path():
                raise ConfigError(f"--{name} is missing; pass --checkpoint DIR --output NEW_DIR")
        if self.format not in ("safetensors", "bin"):
            raise ConfigError(f"format {self.format!r} is unknown; use safetensors or bin")
        _base(self)


@dataclasses.dataclass(frozen=True)
class PreviewSettings(DataSettings):
    """`ptune preview`."""

    data: tuple[Path, ...] = setting(DATA, (), "Data to look at.", "-d")
    records: int = setting(DATA, 3, "How many records to show token by token.", "-n")
    max_source_length: int = setting(DATA, 64, "Tokens of the prompt side.")
    max_target_length: int | None = setting(DATA, None, "Tokens of the response side; as in train.")
    truncation: str = setting(DATA, TURNS, "As in `ptune train`.")
    model: str = setting(
        MODEL, "THUDM/chatglm-6b", "Folder, hub id, or `tiny`; only its tokenizer.", "-m"
    )
    prompt_format: str | None = _prompt_format()
    json: bool = setting(OUTPUT, False, "Print every record as one line of JSON, and nothing else.")

    def __post_init__(self) -> None:
        """Check what can be checked without tokenizer and data."""
        if not self.data:
            raise ConfigError("--data is missing; pass the file to look at, e.g. --data train.json")
        _positive(self, "records")
        _lengths(self)
        _known_format(self)


@dataclasses.dataclass(frozen=True)
class DoctorSettings:
    """`ptune doctor`."""

    model: str | None = setting(MODEL, None, "Look at this folder, hub id, or `tiny`, too.", "-m")
    prompt_format: str | None = _prompt_format()
    json: bool = setting(OUTPUT, False, "Print everything as JSON, and nothing else.")

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        _known_format(self)


@dataclasses.dataclass(frozen=True)
class EstimateSettings(StepSettings):
    """`ptune estimate`; what `ptune train` has, too, has its default."""

    model: str = setting(
        MODEL, "THUDM/chatglm-6b", "Folder, hub id, or `tiny`; only config.json.", "-m"
    )
    card: str | None = setting(
        MODEL, None, "Card, e.g. P100-16GB; by default the one at hand.", "-c"
    )
    dtype: str | None = setting(MODEL, None, "Precision of the base: float32, float16 or bfloat16.")
    quantization_bit: str | None = setting(
        MODEL, None, "Only these weights: 4, 8, nf4 or none; by default none, 8 and 4."
    )
    gradient_checkpointing: bool = setting(MODEL, False, "Only with gradient checkpointing.")
    chat_length: int = setting(DATA, 2048, "Tokens of a chat: all questions and answers so far.")
    json: bool = setting(OUTPUT, False, "Print everything as JSON, in bytes, and nothing else.")

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        _positive(self, "pre_seq_len", "batch_size")
        _micro_batch(self)
        _lengths(self)
        _base(self)
        if self.chat_length < 8:
            raise ConfigError(
                f"chat_length {self.chat_length} leaves no room for text; use 8 or more"
            )


def _positive(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:  # so put, nan is refused, too
            raise ConfigError(f"{name} {value} is not positive; use a larger value")


def _micro_batch(settings: StepSettings) -> None:
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


def _known_format(settings: Any) -> None:
    name = getattr(settings, "prompt_format", None)
    if name not in (*PROMPT_FORMATS, None):
        raise ConfigError(
            f"prompt_format {name!r} is unknown; use one of {', '.join(PROMPT_FORMATS)}"
        )


def _base(settings: Any) -> None:
    _known_format(settings)
    dtype = getattr(settings, "dtype", None)
    if dtype not in (*DTYPE_NAMES, None):
        raise ConfigError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPE_NAMES)}")
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
