"""What the settings of several commands have: headings and ranges, data, base model, step.

Where the data is and how it is read, how the base model is held, what decides the memory of a step.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptune.config.declaration import Range, Settings, setting, shown
from ptune.config.number import parse_whole
from ptune.data.truncation import TRUNCATIONS
from ptune.errors import ConfigError

if TYPE_CHECKING:  # `--help` needs no reader of data
    from ptune.data.schemas import Columns

DTYPE_NAMES = ("float32", "float16", "bfloat16")
QUANTIZATION_BITS = ("4", "8", "nf4", "none")
P_TUNING, LORA = METHODS = ("p-tuning", "lora")
ALL_LINEAR = "all-linear"
PROMPT_FORMATS = ("chatglm", "chatglm2", "chatglm3", "glm4", "chat_template")  # of `Generation`
QUANTIZATION_BACKENDS = ("nvrtc", "triton", "torch", "cpm")

# The upper bounds are far beyond what anybody needs: a number above them is a slip of the keyboard.
STEP_RANGE = Range(least=1, most=10**9)
RECORD_RANGE = Range(least=1, most=10**6)
SLOT_RANGE = Range(least=1, most=4096)
TOKEN_RANGE = Range(least=4, most=10**6)  # fewer leave no room for text
PREFIX_RANGE = Range(least=1, most=10**4)
SEED_RANGE = Range(least=0, most=2**32 - 1)  # what numpy takes
NUCLEUS_RANGE = Range(above=0, most=1)
TEMPERATURE_RANGE = Range(least=0.01, most=100)  # logits divided by less overflow

# The headings of `--help`, in its order.
DATA, METHOD, PREFIX, LOW_RANK, STEPS = "Data", "Method", "Prefix", "LoRA", "Steps"
MODEL, ANSWERS, OUTPUT = "Model and memory", "Answers", "Output"
SERVER, TRIALS, WORKERS = "Server", "Trials", "Workers"
HEADINGS = (TRIALS, DATA, METHOD, PREFIX, LOW_RANK, STEPS, MODEL, WORKERS, SERVER, ANSWERS, OUTPUT)


def prompt_format_setting() -> Any:
    """Declare `--prompt-format`, which also commands without the other settings of a base have."""
    said = "chatglm, chatglm2, chatglm3 or glm4: which the model is, if its folder does not say."
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
    context_column: str | None = setting(DATA, None, "Column of a text that the prompt is about.")
    skip_bad_records: bool = setting(DATA, False, "Leave bad records out, and count them.")

    @property
    def columns(self) -> Columns:
        """The column names that were given."""
        from ptune.data.schemas import Columns

        return Columns(
            self.prompt_column, self.response_column, self.history_column, self.context_column
        )


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
    prompt_format: str | None = prompt_format_setting()


@dataclasses.dataclass(frozen=True)
class ProcessSettings(Settings):
    """In how many processes a command computes."""

    gpus: str | None = setting(
        MODEL, None, "Compute on so many cards of this machine, or on `all`.", excludes="processes"
    )
    processes: int | None = setting(
        MODEL,
        None,
        "Compute in so many processes on the CPU, which share its cores.",
        within=Range(least=1, most=256),
    )


@dataclasses.dataclass(frozen=True)
class StepSettings(Settings):
    """What decides the memory of an optimizer step."""

    method: str = setting(
        METHOD, P_TUNING, "p-tuning trains a prefix, lora low-rank matrices.", choices=METHODS
    )
    pre_seq_len: int = setting(
        PREFIX,
        128,
        "Length of the prefix in tokens.",
        within=PREFIX_RANGE,
        needs=("method", P_TUNING),
    )
    prefix_projection: bool = setting(
        PREFIX, False, "Compute the prefix by a two-layer MLP.", needs=("method", P_TUNING)
    )
    lora_rank: int = setting(
        LOW_RANK, 8, "Rank of the matrices.", within=Range(1, 1024), needs=("method", LORA)
    )
    lora_target: str = setting(
        LOW_RANK,
        ALL_LINEAR,
        "all-linear, or names of linear layers, e.g. q_proj,v_proj.",
        needs=("method", LORA),
    )
    batch_size: int = setting(
        STEPS, 16, "Records per optimizer step, over all cards.", within=RECORD_RANGE
    )
    micro_batch_size: str | int = setting(
        MODEL,
        "auto",
        "Records computed at once: a divisor of the batch, or what fits into memory.",
    )
    gradient_checkpointing: bool = setting(MODEL, False, "Less memory for a third more time.")
    max_source_length: int = setting(DATA, 64, "Tokens of the prompt side.", within=TOKEN_RANGE)
    max_target_length: int | None = setting(
        DATA,
        None,
        "Tokens of the response side; 64 for ChatGLM-6B, else 128.",
        within=TOKEN_RANGE,
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
class GeneratingSettings(BaseSettings, DataSettings):
    """What answers records, and how, of `ptune eval` and `ptune predict`."""

    checkpoint: Path | None = setting(MODEL, None, "Folder with a trained prefix or LoRA.", "-c")
    model: str | None = setting(
        MODEL, None, "Base or merged model; by default what training named.", "-m", folder=True
    )
    prefix: bool = setting(MODEL, True, "Use what was trained; --no-prefix asks the bare model.")
    max_source_length: int | None = setting(
        DATA, None, "Tokens of the prompt; as in training, else 64.", within=TOKEN_RANGE
    )
    truncation: str | None = setting(
        DATA, None, "As in training, else `turns`.", choices=TRUNCATIONS
    )
    batch_size: int = setting(ANSWERS, 16, "Records generated at once.", within=RECORD_RANGE)
    max_new_tokens: int | None = setting(
        ANSWERS,
        None,
        "Longest answer in tokens; by default the response length of training.",
        within=Range(least=1, most=TOKEN_RANGE.most),
    )
    do_sample: bool = setting(
        ANSWERS, False, "Sample as the original did; else greedy, repeatable."
    )
    top_p: float = setting(
        ANSWERS,
        0.7,
        "With --do-sample: nucleus of the distribution.",
        within=NUCLEUS_RANGE,
        needs="do_sample",
    )
    temperature: float = setting(
        ANSWERS,
        0.95,
        "With --do-sample: flattens or sharpens it.",
        within=TEMPERATURE_RANGE,
        needs="do_sample",
        otherwise="neither it nor --do-sample for the likeliest answer",
    )
    seed: int = setting(
        ANSWERS, 42, "With --do-sample: seed.", within=SEED_RANGE, needs="do_sample"
    )
    json: bool = setting(OUTPUT, False, "Print the results as JSON.")

    def __post_init__(self) -> None:
        """Check what can be checked without model and data."""
        super().__post_init__()
        if self.checkpoint is None and self.model is None:
            raise ConfigError(
                "no model is given; pass --checkpoint DIR (a trained prefix) or --model MERGED"
            )


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
