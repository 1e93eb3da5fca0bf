"""The application of a server from its settings, for `ptune serve` and whatever else runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from ptune.base.context import context_length
from ptune.base.folder import BaseModel
from ptune.checkpoint.base import find_base, resolve_base, trained_bits
from ptune.checkpoint.folder import find_whole_checkpoint
from ptune.checkpoint.load import load_model
from ptune.checkpoint.lora import is_lora
from ptune.checkpoint.prefix import read_prefix
from ptune.config.declaration import flag
from ptune.config.settings import ServeSettings
from ptune.config.size import parse_size
from ptune.data.tokenizer import build_tokenizer
from ptune.device.compute_team import compute_apart
from ptune.device.precision import choose_device, choose_dtype
from ptune.errors import ConfigError, missing_package
from ptune.files.home import expand_home
from ptune.generation.engine import Engine
from ptune.generation.streaming import max_prompt_length
from ptune.quantization.layers import precision_of
from ptune.serving.answers import Answers
from ptune.serving.app import make_app
from ptune.serving.cache_memory import cache_tokens
from ptune.serving.limits import api_keys
from ptune.serving.options import Serving
from ptune.serving.prefix_store import PrefixStore
from ptune.serving.worker import Worker

Say = Callable[[str], None]


def build_app(settings: ServeSettings, say: Say) -> tuple[FastAPI, Answers]:
    """Load the model and its prefixes, and make the application that answers with them.

    Args:
        settings: of `ptune serve`; `host` and `port` are up to who runs the application.
        say: is told what happens meanwhile.

    Returns:
        The application, whose lifespan must be run, since it starts and ends the engine's thread;
        and what it answers with.

    Raises:
        PTuneError: the model or a prefix cannot be loaded.
    """
    if settings.prefix_folder is not None and not settings.prefix_folder.is_dir():
        raise ConfigError(
            f"prefix_folder {settings.prefix_folder} is no folder; make it, or name another"
        )
    if settings.web:
        _check_page()
    # The engine's thread is to be the only one that has a team of OpenMP's threads.
    answers, default = compute_apart(lambda: _load(settings, say))
    serving = Serving(
        default,
        settings.max_new_tokens,
        settings.system,
        api_keys(settings.api_key),
        prefix_folder=settings.prefix_folder,
        grace=settings.grace,
        web=settings.web,
    )
    return make_app(answers, serving), answers


def _load(settings: ServeSettings, say: Say) -> tuple[Answers, str]:
    """Load everything; returns it with the name of the default prefix."""
    name = resolve_base(settings.model, settings.checkpoint)
    base = find_base(name, settings.checkpoint, settings.prompt_format, weights=False)
    device = choose_device(settings.device)
    choose_dtype(settings.dtype, device)
    if (context := context_length(base.config)) is not None:
        max_prompt_length(context, settings.max_new_tokens)
    lora = _lora(settings)
    bare = lora.resolve().name if lora else _bare_name(base)
    folders = {} if lora else _folders(settings, bare)
    default = _default(settings, [*folders, bare])
    bits = _bits(base, settings, [lora] if lora else list(folders.values()))
    for folder in folders.values():  # what is wrong with them is said before the weights are loaded
        _check_prefix(find_whole_checkpoint(folder)[0])
    say(f"loading {name}")
    model = load_model(
        name,
        lora,
        settings.dtype,
        settings.device,
        bits,
        settings.quantization_backend,
        base.generation.value,
    )
    base = find_base(name, settings.checkpoint, settings.prompt_format)
    store = _store(settings, model, base, bare, folders, say)
    if lora:
        store.recall_questions(bare, find_whole_checkpoint(lora)[0])
    memory = parse_size(settings.cache_memory, "cache_memory") if settings.cache_memory else None
    prefix, copies = store.longest, store.most_device_bytes
    tokens = cache_tokens(model, base.config, settings.max_slots, memory, prefix, copies)
    worker = Worker(Engine(model, settings.max_slots, cache_tokens=tokens), settings.max_queue)
    say(f"{precision_of(model)}, a KV cache of {tokens:,} tokens")
    answers = Answers(
        worker,
        build_tokenizer(base),
        base.generation,
        store,
        int(model.config.max_position_embeddings),
        settings.request_timeout,
        settings.log_prompts,
    )
    return answers, default


def _lora(settings: ServeSettings) -> Path | None:
    """The checkpoint of a LoRA, which is part of the model for all requests; None without one.

    Raises:
        ConfigError: there are prefixes, too, which were trained on a model without it.
    """
    folder = settings.checkpoint
    if folder is None or not is_lora(folder):
        return None
    for name in ("prefix", "prefix_folder"):
        if getattr(settings, name):
            raise ConfigError(
                f"{flag(name)} does not go with --checkpoint {folder}, whose LoRA changes the "
                "model for all requests; leave it out, or serve the prefixes in a process of "
                "their own"
            )
    return folder


def _check_prefix(folder: Path) -> None:
    """See that a prefix can be read.

    Raises:
        ConfigError: it is a LoRA.
        CheckpointError: from `read_prefix`.
    """
    if is_lora(folder):
        raise ConfigError(
            f"{folder} holds a LoRA, of which a server has one for all requests; pass it with "
            "--checkpoint in the place of prefixes"
        )
    read_prefix(folder)


def _check_page() -> None:
    """See that the page can be shown before a model is loaded for it.

    Raises:
        ConfigError: a package is missing.
    """
    try:
        import ptune.serving.web.page  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_package(error, "ptune serve --web", "web", ", or leave --web out") from error


def _bare_name(base: BaseModel) -> str:
    """What the model is called without a prefix: the last part of its folder or hub id."""
    path = Path(base.name)
    return (path.resolve() if path.is_dir() else path).name


def _default(settings: ServeSettings, names: list[str]) -> str:
    """The prefix of requests that name none.

    Raises:
        ConfigError: it is not served.
    """
    if (default := settings.default_prefix) is None:
        return names[0]
    if default not in names:
        raise ConfigError(
            f"default_prefix {default} is not among what is served; use one of {', '.join(names)}"
        )
    return default


def _store(
    settings: ServeSettings,
    model: Any,
    base: BaseModel,
    bare: str,
    folders: dict[str, Path],
    say: Say,
) -> PrefixStore:
    size = settings.prefix_memory
    most = parse_size(size, "prefix_memory") if size else None
    store = PrefixStore(model, base, bare, most)
    for name, folder in folders.items():
        if passed_over := store.add(name, folder):
            say(f"warning: {passed_over}")
    return store


def _folders(settings: ServeSettings, bare: str) -> dict[str, Path]:
    """Checkpoints by the name that each is served under.

    Raises:
        ConfigError: two have one name, or one that of the bare model.
    """
    pairs = []
    if settings.checkpoint is not None:
        pairs.append((settings.checkpoint.resolve().name, settings.checkpoint))
    for pair in settings.prefix:
        name, _, folder = pair.partition("=")
        pairs.append((name, expand_home(Path(folder), "prefix")))
    found: dict[str, Path] = {}
    for name, path in pairs:
        if name == bare:
            raise ConfigError(
                f"{path} is called {name}, as the model itself; give it another name with "
                "--prefix NAME=DIR"
            )
        if name in found:
            raise ConfigError(
                f"{found[name]} and {path} are both called {name}; give one another name "
                "with --prefix NAME=DIR"
            )
        found[name] = path
    return found


def _bits(base: BaseModel, settings: ServeSettings, folders: list[Path]) -> str | None:
    """The bits to hold the base in, which its prefixes agree on.

    Raises:
        ConfigError: they do not.
    """
    if settings.quantization_bit is not None:
        return settings.quantization_bit
    found = {trained_bits(base, folder, None) for folder in folders}
    if len(found) > 1:
        names = " and ".join(sorted(str(bits or "none") for bits in found))
        raise ConfigError(
            f"the prefixes were trained on a base in different bits ({names}); "
            "choose with --quantization-bit"
        )
    return next(iter(found), None)
