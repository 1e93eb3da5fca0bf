"""`ptune estimate`: memory estimates of training, chat and serving, and what fits the card."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptune.base.architecture import (
    RELEASED,
    RELEASED_BY,
    Architecture,
    Storage,
    weight_bytes,
)
from ptune.base.context import Answer, check_context, context_length
from ptune.base.folder import BaseModel, Generation, find_config
from ptune.base.native import is_native
from ptune.base.schema import is_first
from ptune.config.declaration import shown
from ptune.config.settings import EstimateSettings
from ptune.config.shared_settings import LORA
from ptune.data.prompt import default_target_length
from ptune.device.memory import (
    GAPS,
    Inference,
    Lora,
    Memory,
    Prefix,
    Training,
    host_bytes,
    inference_bytes,
    largest_micro_batch,
    savings,
    training_bytes,
)
from ptune.device.serving_memory import capacity, position_bytes, step_bytes
from ptune.errors import ConfigError

# `total_memory` of a card as torch reports it, a little less than the name says.  A card that is
# not here is taken for the gigabytes of its name, less 3 %.
_GIB = 2**30
CARDS = {
    name: round(gib * _GIB)
    for name, gib in {
        "GTX1080Ti-11GB": 10.9,
        "P100-12GB": 11.9,
        "P100-16GB": 15.9,
        "P40-24GB": 23.9,
        "T4-16GB": 14.6,
        "V100-16GB": 15.8,
        "V100-32GB": 31.7,
        "RTX2080Ti-11GB": 10.7,
        "RTX3060-12GB": 11.6,
        "RTX3090-24GB": 23.7,
        "RTX4060Ti-16GB": 15.6,
        "RTX4090-24GB": 23.6,
        "RTX5090-32GB": 31.4,
        "A10-24GB": 22.0,
        "L4-24GB": 22.0,
        "L40S-48GB": 44.4,
        "A100-40GB": 39.4,
        "A100-80GB": 79.2,
        "H100-80GB": 79.1,
        "H200-141GB": 139.8,
        "B200-180GB": 178.3,
    }.items()
}
_UNKNOWN_CARD_SHARE = 0.97
# Cards of before Ampere, by the beginning of their plain names.
_BEFORE_AMPERE = re.compile(r"gtx|rtx20|titan|quadro(p|rtx)|[pk]\d|m[46]0|v100|t4")
_MOST_GIGABYTES = 10_000
_SIZES = (6, 8, 11, 12, 16, 24, 32, 40, 48, 80, 141, 180)  # in which cards are sold

# The CUDA context and the kernels of torch and cuBLAS are outside of torch's allocator: 0.83 GB on
# an H200 with CUDA 13.0 (benchmarks/memory.py), less on older cards.
CONTEXT_BYTES = 830 * 10**6


@dataclass(frozen=True)
class Card:
    """A card by name, its total memory in bytes, and whether it computes in bfloat16."""

    name: str
    size: int
    native_bfloat16: bool = True


@dataclass(frozen=True)
class Row:
    """Training or chat with one storage of the weights.

    Attributes:
        storage: of the weights.
        use: `train` or `chat`.
        options: what to add to the command.
        micro_batch: records of a micro-batch; None for chat.
        memory: peak memory, as torch counts it.
        fits: whether the card holds it; None without a card.
    """

    storage: Storage
    use: str
    options: str
    micro_batch: int | None
    memory: Memory
    fits: bool | None

    @property
    def weights(self) -> str:
        """How the weights are stored, for display."""
        return _weights(self.storage)

    @property
    def needed(self) -> int:
        """Bytes of a card for this alone: with CUDA context and fragmentation."""
        return needed_bytes(self.memory)

    @property
    def card_size(self) -> int | None:
        """The smallest card, in the gigabytes of its name, that holds it."""
        holds = (size for size in _SIZES if size * _GIB * _UNKNOWN_CARD_SHARE >= self.needed)
        return next(holds, None)


@dataclass(frozen=True)
class Service:
    """`ptune serve` with one storage of the weights; bytes as torch counts them.

    Attributes:
        storage: of the weights.
        position: bytes of a token in the KV cache.
        prefix: bytes of a prefix.
        working: bytes that steps need beside weights and cache, with prompts of a chat's length.
        tokens: of the KV cache that the card holds, as the server has it by default: with a prompt
            as long as it, or as the context; None without a card, 0 where it is too small.
        requests: how many of a chat's length it answers at once, each with a prefix of its own.
        prefixes: how many it holds beside one request.
    """

    storage: Storage
    position: int
    prefix: int
    working: int
    tokens: int | None
    requests: int | None
    prefixes: int | None

    @property
    def weights(self) -> str:
        """How the weights are stored, for display."""
        return _weights(self.storage)


@dataclass(frozen=True)
class Estimate:
    """What `ptune estimate` finds.

    Attributes:
        source: where the config.json fields come from.
        parameters: of the base model.
        trainable_parameters: of the prefix or LoRA.
        settings: as given.
        target_length: tokens of the response side.
        card: at hand or asked for; None without one.
        rows: training and chat with every storage.
        train: the row of training to look at: the best that fits, else the smallest.
        chat: the row of chat with the same weights.
        services: serving with every storage.
        savings: option and bytes that it would save of `train`.
        loading: peak of CPU memory while the weights go to a card.
        on_cpu: CPU memory to train without a card, in float32.
    """

    source: str
    parameters: int
    trainable_parameters: int
    settings: EstimateSettings
    target_length: int
    card: Card | None
    rows: tuple[Row, ...]
    train: Row
    chat: Row
    services: tuple[Service, ...]
    savings: tuple[tuple[str, int], ...]
    loading: int
    on_cpu: int

    @property
    def command(self) -> str:
        """The command of `train`."""
        flags = [f"--model {self.settings.model}"]
        given, defaults = self.settings, EstimateSettings()
        for name in (
            "method",
            "lora_rank",
            "lora_target",
            "pre_seq_len",
            "batch_size",
            "max_source_length",
            "max_target_length",
            "dtype",
        ):
            if getattr(given, name) != getattr(defaults, name):
                flags.append(f"--{name.replace('_', '-')} {getattr(given, name)}")
        if given.prefix_projection:
            flags.append("--prefix-projection")
        if given.micro_batch:
            flags.append(f"--micro-batch-size {given.micro_batch}")
        if given.quantization_bit == "none":
            flags.append("--quantization-bit none")
        return " ".join(["ptune train --data train.json", *flags, self.train.options]).strip()

    def to_json(self) -> dict[str, Any]:
        """Everything in bytes and plain types."""
        return {
            "model": self.settings.model,
            "parameters": self.parameters,
            "method": self.settings.method,
            "trainable_parameters": self.trainable_parameters,
            "card": dataclasses.asdict(self.card) if self.card else None,
            "context_bytes": CONTEXT_BYTES,
            "gaps": GAPS,
            "rows": [
                dataclasses.asdict(row)
                | {
                    "weights": row.weights,
                    "total": row.memory.total,
                    "needed": row.needed,
                    "card_size": row.card_size,
                }
                for row in self.rows
            ],
            "serving": [
                dataclasses.asdict(service) | {"weights": service.weights}
                for service in self.services
            ],
            "chosen": self.rows.index(self.train),
            "savings": dict(self.savings),
            "cpu_bytes_while_loading": self.loading,
            "cpu_bytes_without_card": self.on_cpu,
            "command": self.command,
        }


def _weights(storage: Storage) -> str:
    bits = storage.quantization or str(8 * storage.itemsize)
    return bits if bits == "nf4" else f"{bits} bit"


def needed_bytes(memory: Memory) -> int:
    """Bytes of a card for what torch allocates, with CUDA context and fragmentation."""
    return memory.total + CONTEXT_BYTES + round(GAPS * (memory.total - memory.weights))


def estimate(settings: EstimateSettings) -> Estimate:
    """Estimate from config.json alone; of a hub id only the small files are fetched, if any.

    Raises:
        PTuneError: what is wrong with model, card or settings.
    """
    card = find_card(settings.card) if settings.card else card_at_hand()
    if settings.dtype == "bfloat16" and card and not card.native_bfloat16:
        raise ConfigError(
            f"dtype bfloat16 is not native on {card.name}, where training refuses it; "
            "use --dtype float16"
        )
    config, source = _config(settings.model)
    a = _architecture(config)
    given, settings = settings, _resolve_for(config, a, settings)
    trained = _trained(config, settings)
    rows = [
        row
        for storage, option in _storages(config, settings)
        for row in _rows(a, storage, option, settings, trained, card)
    ]
    chosen = _choose(rows)
    checkpointing = "--gradient-checkpointing" in chosen.options
    training = _training(settings, trained, checkpointing)
    step = _step(a, chosen.storage, training, settings, card)
    on_cpu = Storage(4, rows[0].storage.quantization, "cpu")
    cpu_step = training_bytes(a, on_cpu, training)
    return Estimate(
        source=source,
        parameters=a.parameters,
        trainable_parameters=sum(step.trained.matrices(a)),
        settings=given,
        target_length=step.target_length,
        card=card,
        rows=tuple(rows),
        train=chosen,
        chat=next(r for r in rows if r.use == "chat" and r.storage == chosen.storage),
        services=tuple(
            _service(a, storage, settings, trained, card, context_length(config))
            for storage, _ in _storages(config, settings)
        ),
        savings=tuple(savings(a, chosen.storage, step)),
        loading=host_bytes(a, chosen.storage),
        on_cpu=host_bytes(a, on_cpu) + cpu_step.total - cpu_step.weights,
    )


def _resolve_for(
    config: Mapping[str, Any], a: Architecture, settings: EstimateSettings
) -> EstimateSettings:
    """Fill in what depends on the model.

    Raises:
        ConfigError: lengths that it cannot hold.
    """
    first = not (a.gated or is_native(config))
    default = default_target_length(Generation.CHATGLM if first else Generation.CHATGLM2)
    target, chat = settings.max_target_length or default, settings.chat_length
    check_context(
        config, settings.model, settings.max_source_length, Answer("max_target_length", target)
    )
    if (context := context_length(config)) is not None and chat > context:
        if "chat_length" in settings.given:
            raise ConfigError(
                f"chat_length {chat:,} is more than the context of {context:,} tokens of "
                f"{settings.model}; use at most that"
            )
        chat = context
    return dataclasses.replace(settings, max_target_length=target, chat_length=chat)


def find_card(name: str) -> Card:
    """Look a card up by name, such as `P100-16GB`; an unknown one by the gigabytes in its name.

    Raises:
        ConfigError: neither known nor with gigabytes; lists the known ones.
    """
    wanted = _plain(name)
    for known, size in CARDS.items():
        if wanted == _plain(known):
            return Card(known, size, not _BEFORE_AMPERE.match(wanted))
    # Gigabytes alone, or after a name: a sign or an exponent before them is part of no size.
    pattern = r"(?:[a-z].*)?(?<![\d.])(\d+(?:\.\d+)?) *GI?B?"
    found = re.fullmatch(pattern, name.strip(), re.IGNORECASE)
    if found and 0.1 <= (gigabytes := float(found.group(1))) <= _MOST_GIGABYTES:
        size = round(gigabytes * _GIB * _UNKNOWN_CARD_SHARE)
        return Card(name, size, not _BEFORE_AMPERE.match(wanted))
    raise ConfigError(
        f"card {shown(name)} is unknown; use one of {', '.join(CARDS)}, or a name that ends in its "
        "gigabytes, such as MyCard-20GB"
    )


def _plain(name: str) -> str:
    return re.sub(r"[\W_]|tesla|nvidia|geforce", "", name.lower())


def card_at_hand() -> Card | None:
    """The first card of this machine."""
    import torch

    from ptune.device.precision import NATIVE_BFLOAT16

    if not torch.cuda.is_available():
        return None
    size = torch.cuda.get_device_properties(0).total_memory
    native = torch.cuda.get_device_capability(0) >= NATIVE_BFLOAT16
    return Card(torch.cuda.get_device_name(0), size, native)


def _config(model: str) -> tuple[dict[str, Any], str]:
    owner, _, name = model.rpartition("/")
    if owner in RELEASED_BY and name.lower() in RELEASED:
        return RELEASED[name.lower()], "built-in config"
    path, config = find_config(model)
    return config, f"{path / 'config.json'}"


def _architecture(config: dict[str, Any]) -> Architecture:
    if not is_native(config):
        return Architecture.from_config(config)
    from ptune.models.native_architecture import architecture_of  # torch takes two seconds

    return architecture_of(config)


def _storages(config: dict[str, Any], settings: EstimateSettings) -> list[tuple[Storage, str]]:
    """The storages of the weights that are asked for, or possible, and the option of each."""
    itemsize = 4 if settings.dtype == "float32" else 2
    stored, wanted = config.get("quantization_bit") or None, settings.quantization_bit
    if stored:
        if wanted not in (None, str(stored)):
            raise ConfigError(
                f"--quantization-bit {wanted} does not go with {settings.model}, whose weights "
                f"have {stored} bits already; leave it out, or name the half-precision model"
            )
        return [(Storage(itemsize, str(stored)), "")]
    kinds = (None, "8", "4") if wanted is None else (None if wanted == "none" else wanted,)
    return [(Storage(itemsize, k), f"--quantization-bit {k}" if k else "") for k in kinds]


def _training(settings: EstimateSettings, trained: Prefix | Lora, checkpointing: bool) -> Training:
    return Training(
        source_length=settings.max_source_length,
        target_length=settings.max_target_length or 0,
        trained=trained,
        gradient_checkpointing=checkpointing,
    )


def _trained(config: dict[str, Any], settings: EstimateSettings) -> Prefix | Lora:
    """What is to be trained; the layers beside which a LoRA stands are the model's own."""
    if settings.method != LORA:
        return Prefix(settings.pre_seq_len, settings.prefix_projection)
    from ptune.models.build import empty_model
    from ptune.models.native_architecture import lora_sizes

    generation = Generation.CHATGLM2
    if is_native(config):
        generation = Generation.NATIVE
    elif is_first(config):
        generation = Generation.CHATGLM
    model, _ = empty_model(BaseModel(settings.model, Path(), config, generation))
    return lora_sizes(model, settings.lora_rank, settings.lora_target)


def _rows(
    a: Architecture,
    storage: Storage,
    option: str,
    settings: EstimateSettings,
    trained: Prefix | Lora,
    card: Card | None,
) -> list[Row]:
    def row(use: str, options: str, micro_batch: int | None, memory: Memory) -> Row:
        fits = None if card is None else needed_bytes(memory) <= card.size
        return Row(storage, use, options.strip(), micro_batch, memory, fits)

    rows = []
    for checkpointing in (True,) if settings.gradient_checkpointing else (False, True):
        step = _step(a, storage, _training(settings, trained, checkpointing), settings, card)
        options = f"{option} --gradient-checkpointing" if checkpointing else option
        memory = training_bytes(a, storage, step)
        rows.append(row("train", options, step.micro_batch, memory))
    new = settings.chat_length // 4
    chat = Inference(1, settings.chat_length - new, new, trained)
    return [*rows, row("chat", option, None, inference_bytes(a, storage, chat))]


def _service(
    a: Architecture,
    storage: Storage,
    settings: EstimateSettings,
    trained: Prefix | Lora,
    card: Card | None,
    context: int | None,
) -> Service:
    position, length, slots = position_bytes(a, storage), settings.chat_length, settings.max_slots
    tokens = trained.pre_seq_len
    beside = sum(trained.matrices(a)) * 4 if isinstance(trained, Lora) else 0  # in float32
    prefix = tokens * position
    working = step_bytes(a, storage, slots, length, tokens)
    if card is None:
        return Service(storage, position, prefix, working, None, None, None)
    held = weight_bytes(a, storage) + beside
    room = max(round((card.size - CONTEXT_BYTES - held) / (1 + GAPS)), 0)
    found = capacity(a, storage, room, slots, length, context or length, tokens)
    return Service(storage, position, prefix, working, *dataclasses.astuple(found))


def _step(
    a: Architecture,
    storage: Storage,
    training: Training,
    settings: EstimateSettings,
    card: Card | None,
) -> Training:
    """The step with its micro-batch: as given, else the largest that fits, at least 1."""
    count = settings.micro_batch
    if count is None and card is not None:
        size = card.size
        count = largest_micro_batch(
            a, storage, training, settings.batch_size, lambda memory: needed_bytes(memory) <= size
        )
    count = count or 1
    return dataclasses.replace(training, micro_batch=count, accumulates=count < settings.batch_size)


def _choose(rows: list[Row]) -> Row:
    """The first row of training that fits, else the smallest; without a card the first."""
    training = [row for row in rows if row.use == "train"]
    if training[0].fits is None:
        return training[0]
    fitting = (row for row in training if row.fits)
    return next(fitting, min(training, key=lambda row: row.needed))
