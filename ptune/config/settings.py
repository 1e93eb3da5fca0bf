"""The settings of every command: one dataclass a command, one default a setting.

Settings that several commands have stand in a base class: where the data is and how it is read, how
the base model is held, what decides the memory of a step.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptune.config.declaration import Range, Settings, flag, setting, shown
from ptune.config.number import parse_whole
from ptune.config.size import parse_size
from ptune.data.truncation import TRUNCATIONS, TURNS
from ptune.errors import ConfigError

if TYPE_CHECKING:  # `--help` needs no reader of data
    from ptune.data.schemas import Columns

DTYPE_NAMES = ("float32", "float16", "bfloat16")
QUANTIZATION_BITS = ("4", "8", "nf4", "none")
PROMPT_FORMATS = ("chatglm", "chatglm2", "chatglm3")  # those of `Generation`
QUANTIZATION_BACKENDS = ("nvrtc", "triton", "torch", "cpm")

# The upper bounds are far beyond what anybody needs: a number above them is a slip of the keyboard.
_STEPS = Range(least=1, most=10**9)
_RECORDS = Range(least=1, most=10**6)
_TOKENS = Range(least=4, most=10**6)  # fewer leave no room for text
_PREFIX_TOKENS = Range(least=1, most=10**4)
_SEEDS = Range(least=0, most=2**32 - 1)  # what numpy takes
_NUCLEUS = Range(above=0, most=1)
_TEMPERATURES = Range(least=0.01, most=100)  # logits divided by less overflow

# The headings of `--help`, in its order.
DATA, PREFIX, STEPS = "Data", "Prefix", "Steps"
MODEL, ANSWERS, OUTPUT = "Model and memory", "Answers", "Output"
HEADINGS = (DATA, PREFIX, STEPS, MODEL, ANSWERS, OUTPUT)


def _prompt_format() -> Any:
    said = "chatglm, chatglm2 or chatglm3: which one the model is, if its folder does not say."
    return setting(MODEL, None, said, choices=PROMPT_FORMATS)


@dataclasses.dataclass(frozen=True)
class DataSettings(Settings):
    """Data files and how they are read."""

    data: tuple[Path, ...] = setting(
        DATA, (), "Training data: files or folders; all are mixed.", "-d"
    )
    prompt_column: str | None = setting(DATA, None, "Column of the prompt; found by itself.")
    response_column: str | None = setting(DATA, None, "Column of the response; found by itself.")
    history_column: str | None = setting(DATA, None, "Column of earlier [question, answer] pairs.")
    skip_bad_records: bool = setting(DATA, False, "Leave bad records out, and count them.")

    @property
    def columns(self) -> Columns:
        """The column names that were given."""
        from ptune.data.schemas import Columns

        return Columns(self.prompt_column, self.response_column, self.history_column)


@dataclasses.dataclass(frozen=True)
class BaseSettings(Settings):
    """How the base model is held."""

    dtype: str | None = setting(
        MODEL,
        None,
        "Precision of the base: float32, float16, bfloat16; by default what the card has.",
        choices=DTYPE_NAMES,
    )
    device: str | None = setting(
        MODEL, None, "cpu, cuda, cuda:N or mps; by default the first CUDA card, else the CPU."
    )
    quantization_bit: str | None = setting(
        MODEL,
        None,
        "Hold the base in 4 or 8 bits, in nf4, or in none; by default as its prefix was trained, "
        "else as its folder holds it.",
        choices=QUANTIZATION_BITS,
    )
    quantization_backend: str | None = setting(
        MODEL,
        None,
        "Dequantize by nvrtc, triton, torch or cpm; by default by the fastest.",
        choices=QUANTIZATION_BACKENDS,
    )
    prompt_format: str | None = _prompt_format()


@dataclasses.dataclass(frozen=True)
class StepSettings(Settings):
    """What decides the memory of an optimizer step."""

    pre_seq_len: int = setting(
        PREFIX, 128, "Length of the prefix in tokens.", within=_PREFIX_TOKENS
    )
    prefix_projection: bool = setting(PREFIX, False, "Compute the prefix by a two-layer MLP.")
    batch_size: int = setting(
        STEPS, 16, "Records per optimizer step, over all cards.", within=_RECORDS
    )
    micro_batch_size: str | int = setting(
        MODEL,
        "auto",
        "Records computed at once: a divisor of the batch, or what fits into memory.",
    )
    gradient_checkpointing: bool = setting(MODEL, False, "Less memory for a third more time.")
    max_source_length: int = setting(DATA, 64, "Tokens of the prompt side.", within=_TOKENS)
    max_target_length: int | None = setting(
        DATA, None, "Tokens of the response side; 64, and 128 for ChatGLM2 and 3.", within=_TOKENS
    )

    def __post_init__(self) -> None:
        """Check the micro-batch, too."""
        super().__post_init__()
        _check_micro_batch(self)

    @property
    def micro_batch(self) -> int | None:
        """Records computed at once; None leaves it to the memory."""
        return None if self.micro_batch_size == "auto" else parse_whole(self.micro_batch_size)


@dataclasses.dataclass(frozen=True)
class TrainSettings(BaseSettings, StepSettings, DataSettings):
    """`ptune train`; the defaults are the original's train.sh."""

    model: str = setting(MODEL, "THUDM/chatglm-6b", "Folder, hub id, or `tiny`.", "-m", folder=True)
    eval_data: tuple[Path, ...] = setting(DATA, (), "Development data, for eval_loss.")
    eval_fraction: float | None = setting(
        DATA,
        None,
        "Hold out this share of --data as development data, e.g. 0.1.",
        within=Range(above=0, below=1),
        excludes="eval_data",
    )
    truncation: str = setting(
        DATA,
        TURNS,
        "`turns` drops the oldest turns first; `original` cuts as the original did.",
        choices=TRUNCATIONS,
    )
    prefix_dropout: float = setting(
        PREFIX, 0.1, "Dropout on the prefix.", within=Range(least=0, below=1)
    )
    init_prefix: Path | None = setting(
        PREFIX,
        None,
        "Start from the prefix of this checkpoint, which has its own length.",
    )
    learning_rate: float = setting(
        STEPS, 2e-2, "Peak rate; it falls linearly to zero.", within=Range(above=0, most=100)
    )
    warmup_steps: int = setting(
        STEPS,
        0,
        "Steps in which the learning rate rises.",
        within=Range(least=0, most=_STEPS.most),
    )
    max_steps: int = setting(
        STEPS, 3000, "Optimizer steps; --epochs takes its place.", within=_STEPS, excludes="epochs"
    )
    epochs: float | None = setting(
        STEPS,
        None,
        "Passes over the data, in place of --max-steps.",
        within=Range(above=0, most=10**6),
    )
    eval_steps: int | None = setting(
        STEPS,
        None,
        "Steps between evaluations of eval_loss; by default --save-steps.",
        within=_STEPS,
    )
    early_stopping: int | None = setting(
        STEPS,
        None,
        "Stop after so many evaluations in a row without a lower eval_loss.",
        within=_STEPS,
    )
    load_best: bool = setting(
        STEPS, False, "The finished prefix is the one of the lowest eval_loss, not the last."
    )
    seed: int = setting(STEPS, 42, "Seed of prefix, order and dropout.", within=_SEEDS)
    shuffle: bool = setting(STEPS, True, "Shuffle the records; else they come in file order.")
    output: Path | None = setting(
        OUTPUT, None, "Folder to write; by default named after the run.", "-o"
    )
    resume: bool = setting(
        OUTPUT,
        False,
        "Insist on going on from the last checkpoint in --output, as is done where there is one.",
        excludes="fresh",
    )
    fresh: bool = setting(
        OUTPUT, False, "Start anew where --output holds a training, in a new folder beside it."
    )
    save_steps: int = setting(
        OUTPUT, 1000, "Steps between checkpoints; the last step is always saved.", within=_STEPS
    )
    save_total_limit: int = setting(
        OUTPUT, 3, "Newest checkpoints to keep, and the one of the lowest eval_loss.", within=_STEPS
    )
    logging_steps: int = setting(OUTPUT, 10, "Steps between log lines.", within=_STEPS)
    report_to: str = setting(OUTPUT, "none", "Loggers of transformers, e.g. tensorboard.")
    deterministic: bool = setting(
        MODEL, False, "On a card: the same result, to the last bit, in every run; slower."
    )

    @property
    def evaluates(self) -> bool:
        """Whether there is development data."""
        return bool(self.eval_data) or self.eval_fraction is not None

    def __post_init__(self) -> None:
        """Check what can be checked without model and data."""
        super().__post_init__()
        if not self.data:
            raise ConfigError("--data is missing; pass the training file, e.g. --data train.json")
        for name in ("eval_steps", "early_stopping", "load_best"):
            if name in self.given and getattr(self, name) and not self.evaluates:
                raise ConfigError(
                    f"{flag(name)} has no effect without development data; pass --eval-data FILE "
                    "or --eval-fraction 0.1, too, or leave it out"
                )


@dataclasses.dataclass(frozen=True)
class EvalSettings(BaseSettings, DataSettings):
    """`ptune eval`."""

    data: tuple[Path, ...] = setting(
        DATA, (), "Data to evaluate; by default what training named.", "-d"
    )
    checkpoint: Path | None = setting(MODEL, None, "Folder with a trained prefix.", "-c")
    model: str | None = setting(
        MODEL, None, "Base or merged model; by default what training named.", "-m", folder=True
    )
    prefix: bool = setting(MODEL, True, "Use the prefix; --no-prefix evaluates the bare model.")
    max_samples: int | None = setting(
        DATA, None, "Evaluate only the first records.", within=Range(least=1, most=10**9)
    )
    max_source_length: int | None = setting(
        DATA, None, "Tokens of the prompt; as in training, else 64.", within=_TOKENS
    )
    truncation: str | None = setting(
        DATA, None, "As in training, else `turns`.", choices=TRUNCATIONS
    )
    batch_size: int = setting(ANSWERS, 16, "Records generated at once.", within=_RECORDS)
    max_new_tokens: int | None = setting(
        ANSWERS,
        None,
        "Longest answer in tokens; by default the response length of training.",
        within=Range(least=1, most=_TOKENS.most),
    )
    do_sample: bool = setting(
        ANSWERS, False, "Sample as the original did; else greedy, repeatable."
    )
    top_p: float = setting(
        ANSWERS,
        0.7,
        "With --do-sample: nucleus of the distribution.",
        within=_NUCLEUS,
        needs="do_sample",
    )
    temperature: float = setting(
        ANSWERS,
        0.95,
        "With --do-sample: flattens or sharpens it.",
        within=_TEMPERATURES,
        needs="do_sample",
        otherwise="neither it nor --do-sample for the likeliest answer",
    )
    seed: int = setting(ANSWERS, 42, "With --do-sample: seed.", within=_SEEDS, needs="do_sample")
    output: Path | None = setting(
        OUTPUT, None, "Folder to write; by default inside --checkpoint.", "-o"
    )
    json: bool = setting(OUTPUT, False, "Print the results as JSON.")

    def __post_init__(self) -> None:
        """Check what can be checked without model and data."""
        super().__post_init__()
        if self.checkpoint is None and self.model is None:
            raise ConfigError(
                "no model is given; pass --checkpoint DIR (a trained prefix) or --model MERGED"
            )


@dataclasses.dataclass(frozen=True)
class ChatSettings(BaseSettings):
    """`ptune chat`."""

    checkpoint: Path | None = setting(MODEL, None, "Folder with a trained prefix.", "-c")
    model: str | None = setting(
        MODEL, None, "Base or merged model; by default what training named.", "-m", folder=True
    )
    max_new_tokens: int = setting(
        ANSWERS, 512, "Longest answer in tokens.", within=Range(least=1, most=_TOKENS.most)
    )
    do_sample: bool = setting(
        ANSWERS, True, "Sample; --no-do-sample gives the same answer every time."
    )
    top_p: float = setting(
        ANSWERS, 0.7, "Nucleus of the distribution.", within=_NUCLEUS, needs="do_sample"
    )
    temperature: float = setting(
        ANSWERS,
        0.95,
        "Flattens or sharpens the distribution.",
        within=_TEMPERATURES,
        needs="do_sample",
        otherwise="--no-do-sample in its place for the likeliest answer",
    )
    seed: int | None = setting(
        ANSWERS, None, "Seed, for answers that can be repeated.", within=_SEEDS, needs="do_sample"
    )
    system: str = setting(ANSWERS, "", "Instruction in front of the first turn.", lines=True)

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        super().__post_init__()
        if self.checkpoint is None and self.model is None:
            raise ConfigError(
                "no model is given; pass --checkpoint DIR (a trained prefix) or --model DIR"
            )


@dataclasses.dataclass(frozen=True)
class MergeSettings(Settings):
    """`ptune merge`."""

    checkpoint: Path = setting(MODEL, Path(), "Folder with a trained prefix.", "-c")
    model: str | None = setting(
        MODEL, None, "Base model; by default what training named.", "-m", folder=True
    )
    prompt_format: str | None = _prompt_format()
    quantization_bit: str | None = setting(
        MODEL,
        None,
        "Write the base in the official 4 or 8 bits, or in none; by default as in training.",
        choices=QUANTIZATION_BITS,
    )
    output: Path = setting(OUTPUT, Path(), "Folder to write; it must not exist yet.", "-o")
    format: str = setting(
        OUTPUT,
        "safetensors",
        "Of the weight files: safetensors or bin.",
        choices=("safetensors", "bin"),
    )
    max_shard_size: str = setting(OUTPUT, "2GB", "Largest weight file, e.g. 500MB, 5GB.")

    def __post_init__(self) -> None:
        """Check what can be checked without files."""
        super().__post_init__()
        for name in ("checkpoint", "output"):
            if name not in self.given:
                raise ConfigError(f"--{name} is missing; pass --checkpoint DIR --output NEW_DIR")
        parse_size(self.max_shard_size, "max_shard_size")


@dataclasses.dataclass(frozen=True)
class PreviewSettings(DataSettings):
    """`ptune preview`."""

    data: tuple[Path, ...] = setting(DATA, (), "Data to look at.", "-d")
    records: int = setting(
        DATA,
        3,
        "How many records to show token by token.",
        "-n",
        within=Range(least=1, most=10**9),
        excludes="json",
    )
    max_source_length: int = setting(DATA, 64, "Tokens of the prompt side.", within=_TOKENS)
    max_target_length: int | None = setting(
        DATA, None, "Tokens of the response side; as in train.", within=_TOKENS
    )
    truncation: str = setting(DATA, TURNS, "As in `ptune train`.", choices=TRUNCATIONS)
    model: str = setting(
        MODEL,
        "THUDM/chatglm-6b",
        "Folder, hub id, or `tiny`; only its tokenizer.",
        "-m",
        folder=True,
    )
    prompt_format: str | None = _prompt_format()
    json: bool = setting(OUTPUT, False, "Print every record as one line of JSON, and nothing else.")

    def __post_init__(self) -> None:
        """Check what can be checked without tokenizer and data."""
        super().__post_init__()
        if not self.data:
            raise ConfigError("--data is missing; pass the file to look at, e.g. --data train.json")


@dataclasses.dataclass(frozen=True)
class ScoreSettings(Settings):
    """`ptune score`."""

    file: Path = setting(DATA, Path(), "Predictions, ptune's or the original's.", argument=True)
    json: bool = setting(OUTPUT, False, "Print JSON.")


@dataclasses.dataclass(frozen=True)
class DoctorSettings(Settings):
    """`ptune doctor`."""

    model: str | None = setting(
        MODEL, None, "Look at this folder, hub id, or `tiny`, too.", "-m", folder=True
    )
    prompt_format: str | None = _prompt_format()
    json: bool = setting(OUTPUT, False, "Print everything as JSON, and nothing else.")


@dataclasses.dataclass(frozen=True)
class EstimateSettings(StepSettings):
    """`ptune estimate`; what `ptune train` has, too, has its default."""

    model: str = setting(
        MODEL,
        "THUDM/chatglm-6b",
        "Folder, hub id, or `tiny`; only config.json.",
        "-m",
        folder=True,
    )
    card: str | None = setting(
        MODEL, None, "Card, e.g. P100-16GB; by default the one at hand.", "-c"
    )
    dtype: str | None = setting(
        MODEL,
        None,
        "Precision of the base: float32, float16 or bfloat16.",
        choices=DTYPE_NAMES,
    )
    quantization_bit: str | None = setting(
        MODEL,
        None,
        "Only these weights: 4, 8, nf4 or none; by default none, 8 and 4.",
        choices=QUANTIZATION_BITS,
    )
    gradient_checkpointing: bool = setting(MODEL, False, "Only with gradient checkpointing.")
    chat_length: int = setting(
        DATA,
        2048,
        "Tokens of a chat: all questions and answers so far.",
        within=Range(least=8, most=_TOKENS.most),
    )
    json: bool = setting(OUTPUT, False, "Print everything as JSON, in bytes, and nothing else.")


def _check_micro_batch(settings: StepSettings) -> None:
    try:
        size = settings.micro_batch
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"micro_batch_size {shown(settings.micro_batch_size)} is neither auto nor a number; "
            f"use auto, or a divisor of {settings.batch_size}"
        ) from error
    if size is None:
        return
    if size <= 0 or settings.batch_size % size:
        raise ConfigError(
            f"batch_size {settings.batch_size} is not a multiple of micro_batch_size "
            f"{shown(size)}; use a divisor of {settings.batch_size}"
        )
