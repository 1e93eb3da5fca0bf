"""The settings of every command: one dataclass a command, one default a setting.

What several commands have stands in `shared_settings.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ptune.config.declaration import Range, Settings, flag, setting
from ptune.config.shared_settings import (
    ANSWERS,
    DATA,
    DTYPE_NAMES,
    LORA,
    LOW_RANK,
    MODEL,
    NUCLEUS_RANGE,
    OUTPUT,
    P_TUNING,
    PREFIX,
    QUANTIZATION_BITS,
    SEED_RANGE,
    SERVER,
    SLOT_RANGE,
    STEP_RANGE,
    STEPS,
    TEMPERATURE_RANGE,
    TOKEN_RANGE,
    BaseSettings,
    DataSettings,
    GeneratingSettings,
    ProcessSettings,
    StepSettings,
    prompt_format_setting,
)
from ptune.config.size import parse_size
from ptune.data.example_questions import MAX_QUESTIONS
from ptune.data.truncation import TRUNCATIONS, TURNS
from ptune.errors import ConfigError

_RATES = {P_TUNING: 2e-2, LORA: 1e-4}  # a LoRA begins at the base, a prefix far from it
EXPORT_FORMATS = ("peft", "official", "safetensors", "glm")
INIT_MERGES = ("mean", "concat")


@dataclasses.dataclass(frozen=True)
class TrainSettings(BaseSettings, ProcessSettings, StepSettings, DataSettings):
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
        PREFIX,
        0.1,
        "Dropout on the prefix.",
        within=Range(least=0, below=1),
        needs=("method", P_TUNING),
    )
    init_prefix: tuple[Path, ...] | None = setting(
        PREFIX,
        None,
        "Start from the prefix of this checkpoint, which has its own length; given several times, "
        "from those of all.",
        needs=("method", P_TUNING),
    )
    init_merge: str = setting(
        PREFIX,
        "mean",
        "Several --init-prefix become one by the `mean` of their keys and values, or by `concat`, "
        "one after the other.",
        choices=INIT_MERGES,
        needs=("method", P_TUNING),
    )
    init_text: str | None = setting(
        PREFIX,
        None,
        "Start from the keys and values of this text, e.g. an instruction; its length is the "
        "prefix's.",
        lines=True,
        needs=("method", P_TUNING),
    )
    init_text_file: Path | None = setting(
        PREFIX, None, "The same, of the text in a file.", needs=("method", P_TUNING)
    )
    init_data: int | None = setting(
        PREFIX,
        None,
        "The same, of so many records of the data as worked examples.",
        within=Range(least=1, most=1000),
        needs=("method", P_TUNING),
    )
    distill_text: Path | None = setting(
        PREFIX,
        None,
        "Learn what the base would answer with this file's text in its context, not the data's "
        "answers.",
        needs=("method", P_TUNING),
    )
    lora_alpha: int = setting(
        LOW_RANK,
        16,
        "Their product counts alpha / rank times.",
        within=Range(least=1, most=10**4),
        needs=("method", LORA),
    )
    lora_dropout: float = setting(
        LOW_RANK,
        0.0,
        "Dropout on the input of the matrices.",
        within=Range(least=0, below=1),
        needs=("method", LORA),
    )
    learning_rate: float | None = setting(
        STEPS,
        None,
        "Peak rate, which falls linearly to zero; by default "
        f"{_RATES[P_TUNING]:g}, of a LoRA {_RATES[LORA]:g}.",
        within=Range(above=0, most=100),
    )
    warmup_steps: int = setting(
        STEPS,
        0,
        "Steps in which the learning rate rises.",
        within=Range(least=0, most=STEP_RANGE.most),
    )
    max_steps: int = setting(
        STEPS,
        3000,
        "Optimizer steps; --epochs takes its place.",
        within=STEP_RANGE,
        excludes="epochs",
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
        within=STEP_RANGE,
    )
    early_stopping: int | None = setting(
        STEPS,
        None,
        "Stop after so many evaluations in a row without a lower eval_loss.",
        within=STEP_RANGE,
    )
    load_best: bool = setting(
        STEPS, False, "The result is the one of the lowest eval_loss, not the last."
    )
    seed: int = setting(STEPS, 42, "Seed of prefix or LoRA, order, dropout.", within=SEED_RANGE)
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
        OUTPUT, 1000, "Steps between checkpoints; the last step is always saved.", within=STEP_RANGE
    )
    save_total_limit: int = setting(
        OUTPUT,
        3,
        "Newest checkpoints to keep, and the one of the lowest eval_loss.",
        within=STEP_RANGE,
    )
    logging_steps: int = setting(OUTPUT, 10, "Steps between log lines.", within=STEP_RANGE)
    example_questions: int = setting(
        OUTPUT,
        3,
        "Most short questions of the data that the checkpoint keeps, for `ptune serve --web`.",
        within=Range(least=0, most=MAX_QUESTIONS),
    )
    report_to: str = setting(OUTPUT, "none", "Loggers of transformers, e.g. tensorboard.")
    deterministic: bool = setting(
        MODEL, False, "On a card: the same result, to the last bit, in every run; slower."
    )

    @property
    def evaluates(self) -> bool:
        """Whether there is development data."""
        return bool(self.eval_data) or self.eval_fraction is not None

    @property
    def anew(self) -> str:
        """For errors: how to train where there is a training already."""
        return "begin anew in a folder beside it with --fresh"

    @property
    def takes_init_prefix(self) -> bool:
        """For errors: whether --init-prefix is there to be advised."""
        return self.method == P_TUNING

    def __post_init__(self) -> None:
        """Check what can be checked without model and data."""
        super().__post_init__()
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", _RATES[self.method])
        if not self.data:
            raise ConfigError("--data is missing; pass the training file, e.g. --data train.json")
        self._check_beginning()
        for name in ("eval_steps", "early_stopping", "load_best"):
            if name in self.given and getattr(self, name) and not self.evaluates:
                raise ConfigError(
                    f"{flag(name)} has no effect without development data; pass --eval-data FILE "
                    "or --eval-fraction 0.1, too, or leave it out"
                )

    def _check_beginning(self) -> None:
        names = ("init_prefix", "init_text", "init_text_file", "init_data")
        given = [flag(name) for name in names if getattr(self, name)]
        if len(given) > 1:
            raise ConfigError(
                f"{given[0]} and {given[1]} both say what the prefix begins as; leave one out"
            )
        if "init_merge" in self.given and len(self.init_prefix or ()) < 2:
            raise ConfigError(
                "--init-merge has no effect without a second --init-prefix; pass that, too, or "
                "leave it out"
            )
        if given and not self.init_prefix and self.prefix_projection:
            raise ConfigError(
                f"{given[0]} does not go with --prefix-projection, whose MLP computes the keys and "
                "values: it cannot begin as given ones; leave one of them out"
            )


@dataclasses.dataclass(frozen=True)
class EvalSettings(GeneratingSettings, ProcessSettings):
    """`ptune eval`."""

    data: tuple[Path, ...] = setting(
        DATA, (), "Data to evaluate; by default what training named.", "-d"
    )
    max_samples: int | None = setting(
        DATA, None, "Evaluate only the first records.", within=Range(least=1, most=10**9)
    )
    output: Path | None = setting(
        OUTPUT, None, "Folder to write; by default inside --checkpoint.", "-o"
    )


@dataclasses.dataclass(frozen=True)
class AnsweringSettings(BaseSettings):
    """The model that answers, of `ptune chat` and `ptune serve`."""

    checkpoint: Path | None = setting(MODEL, None, "Folder with a trained prefix or LoRA.", "-c")
    model: str | None = setting(
        MODEL, None, "Base or merged model; by default what training named.", "-m", folder=True
    )

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        super().__post_init__()
        if self.checkpoint is None and self.model is None:
            raise ConfigError(
                "no model is given; pass --checkpoint DIR (a trained prefix) or --model DIR"
            )


@dataclasses.dataclass(frozen=True)
class ChatSettings(AnsweringSettings):
    """`ptune chat`."""

    max_new_tokens: int = setting(
        ANSWERS, 512, "Longest answer in tokens.", within=Range(least=1, most=TOKEN_RANGE.most)
    )
    do_sample: bool = setting(
        ANSWERS, True, "Sample; --no-do-sample gives the same answer every time."
    )
    top_p: float = setting(
        ANSWERS, 0.7, "Nucleus of the distribution.", within=NUCLEUS_RANGE, needs="do_sample"
    )
    temperature: float = setting(
        ANSWERS,
        0.95,
        "Flattens or sharpens the distribution.",
        within=TEMPERATURE_RANGE,
        needs="do_sample",
        otherwise="--no-do-sample in its place for the likeliest answer",
    )
    seed: int | None = setting(
        ANSWERS,
        None,
        "Seed, for answers that can be repeated.",
        within=SEED_RANGE,
        needs="do_sample",
    )
    system: str = setting(ANSWERS, "", "Instruction in front of the first turn.", lines=True)
    context: Path | None = setting(ANSWERS, None, "Text file that the questions are about.")
    question: str | None = setting(
        ANSWERS,
        None,
        "Answer this alone, on stdout; without it, hold a conversation.",
        argument="QUESTION",
        lines=True,
    )


@dataclasses.dataclass(frozen=True)
class ServeSettings(AnsweringSettings):
    """`ptune serve`."""

    prefix: tuple[str, ...] = setting(
        PREFIX, (), "NAME=DIR: serve this prefix as NAME; --checkpoint's has its folder's name."
    )
    default_prefix: str | None = setting(
        PREFIX, None, "For requests that name none; by default the first, else the bare model."
    )
    prefix_folder: Path | None = setting(
        PREFIX, None, "Let clients load and drop prefixes of this folder at /v1/prefixes."
    )
    prefix_memory: str | None = setting(
        PREFIX, None, "Most memory of a card for prefixes, e.g. 2GB; by default for all."
    )
    host: str = setting(SERVER, "127.0.0.1", "Address to listen at; others demand an --api-key.")
    port: int = setting(SERVER, 8000, "Port; 0 takes a free one.", within=Range(0, 65535))
    api_key: tuple[str, ...] = setting(
        SERVER, (), "Let in who brings this key; also PTUNE_API_KEYS, between commas."
    )
    max_slots: int = setting(SERVER, 32, "Requests answered at once.", within=SLOT_RANGE)
    max_queue: int = setting(SERVER, 256, "Requests that may wait.", within=Range(0, 10**6))
    cache_memory: str | None = setting(
        SERVER, None, "Most memory of the KV cache, e.g. 4GB; by default what is free."
    )
    request_timeout: float = setting(
        SERVER, 600.0, "Seconds that an answer may take.", within=Range(above=0, most=10**6)
    )
    grace: float = setting(
        SERVER, 30.0, "Seconds that answers have to finish at the end.", within=Range(0, 10**6)
    )
    web: bool = setting(SERVER, False, "Also a chat page for people, at /web.")
    log_prompts: bool = setting(SERVER, False, "Log what is asked and answered, too.")
    max_new_tokens: int = setting(
        ANSWERS,
        512,
        "Longest answer, in tokens, where a request does not say.",
        within=Range(least=1, most=TOKEN_RANGE.most),
    )
    system: str = setting(ANSWERS, "", "Instruction for conversations without one.", lines=True)

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        super().__post_init__()
        for pair in self.prefix:
            name, equals, folder = pair.partition("=")
            if not (name and equals and folder):
                raise ConfigError(f"prefix {pair} is not NAME=DIR; use e.g. --prefix ads=DIR")
        for name in ("cache_memory", "prefix_memory"):
            if (size := getattr(self, name)) is not None:
                parse_size(size, name)


@dataclasses.dataclass(frozen=True)
class MergeSettings(Settings):
    """`ptune merge`."""

    checkpoint: Path = setting(MODEL, Path(), "Folder with a trained prefix or LoRA.", "-c")
    model: str | None = setting(
        MODEL, None, "Base model; by default what training named.", "-m", folder=True
    )
    prompt_format: str | None = prompt_format_setting()
    quantization_bit: str | None = setting(
        MODEL,
        None,
        "Write the base in the official 4 or 8 bits, or in none; by default as a prefix was "
        "trained, of a LoRA in none.",
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
class ExportSettings(Settings):
    """`ptune export`."""

    checkpoint: Path | None = setting(MODEL, None, "Folder with a trained prefix or LoRA.", "-c")
    model: str | None = setting(
        MODEL, None, "Base model; by default what training named.", "-m", folder=True
    )
    prompt_format: str | None = prompt_format_setting()
    output: Path = setting(OUTPUT, Path(), "Folder to write; it must not exist yet.", "-o")
    format: str = setting(
        OUTPUT,
        "peft",
        "peft: an adapter; official: what the original's scripts load; safetensors: keys and "
        "values; glm: not the prefix, but the base as transformers' own model.",
        choices=EXPORT_FORMATS,
    )

    def __post_init__(self) -> None:
        """Check what can be checked without files."""
        super().__post_init__()
        if "output" not in self.given:
            raise ConfigError("--output is missing; pass --output NEW_DIR")
        if self.format == "glm" and self.checkpoint is None and self.model is None:
            raise ConfigError(
                "no model is given; pass --model DIR, or --checkpoint DIR for its base"
            )
        if self.format != "glm" and self.checkpoint is None:
            raise ConfigError("--checkpoint is missing; pass --checkpoint DIR")


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
    max_source_length: int = setting(DATA, 64, "Tokens of the prompt side.", within=TOKEN_RANGE)
    max_target_length: int | None = setting(
        DATA, None, "Tokens of the response side; as in train.", within=TOKEN_RANGE
    )
    truncation: str = setting(DATA, TURNS, "As in `ptune train`.", choices=TRUNCATIONS)
    model: str = setting(
        MODEL,
        "THUDM/chatglm-6b",
        "Folder, hub id, or `tiny`; only its tokenizer.",
        "-m",
        folder=True,
    )
    prompt_format: str | None = prompt_format_setting()
    json: bool = setting(OUTPUT, False, "Print every record as one line of JSON, and nothing else.")

    def __post_init__(self) -> None:
        """Check what can be checked without tokenizer and data."""
        super().__post_init__()
        if not self.data:
            raise ConfigError("--data is missing; pass the file to look at, e.g. --data train.json")


@dataclasses.dataclass(frozen=True)
class ScoreSettings(Settings):
    """`ptune score`."""

    file: Path = setting(DATA, Path(), "Predictions, ptune's or the original's.", argument="FILE")
    json: bool = setting(OUTPUT, False, "Print JSON.")


@dataclasses.dataclass(frozen=True)
class DoctorSettings(Settings):
    """`ptune doctor`."""

    model: str | None = setting(
        MODEL, None, "Look at this folder, hub id, or `tiny`, too.", "-m", folder=True
    )
    prompt_format: str | None = prompt_format_setting()
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
        within=Range(least=8, most=TOKEN_RANGE.most),
    )
    max_slots: int = setting(
        SERVER, 32, "Requests that `ptune serve` answers at once.", within=SLOT_RANGE
    )
    json: bool = setting(OUTPUT, False, "Print everything as JSON, in bytes, and nothing else.")
