"""`ptune serve`: loads a model and its prefixes, and answers over HTTP."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from ptune.base.context import context_length
from ptune.base.folder import BaseModel
from ptune.checkpoint.base import find_base, resolve_base, trained_bits
from ptune.checkpoint.folder import find_whole_checkpoint
from ptune.checkpoint.load import load_model
from ptune.checkpoint.prefix import read_prefix
from ptune.config.settings import ServeSettings
from ptune.config.size import parse_size
from ptune.data.tokenizer import build_tokenizer
from ptune.device.precision import choose_device, choose_dtype
from ptune.errors import ConfigError
from ptune.files.home import expand_home
from ptune.generation.engine import Engine
from ptune.generation.streaming import max_prompt_length
from ptune.quantization.layers import precision_of

try:
    import uvicorn

    from ptune.serving.answers import Answers
    from ptune.serving.app import Serving, make_app
    from ptune.serving.cache_memory import cache_tokens
    from ptune.serving.log import configure_log
    from ptune.serving.prefix_store import PrefixStore
    from ptune.serving.worker import Worker
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] == "ptune":
        raise
    raise ConfigError(
        f"ptune serve needs {error.name}, which is not installed; run pip install 'ptune[serve]'"
    ) from error

_LEAVE = 2  # seconds for clients that send or read nothing more
_FLUSH = 0.2  # seconds in which last pieces are sent when the engine has ended


def run_serve(settings: ServeSettings) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        settings: of `ptune serve`.

    Raises:
        PTuneError: the model or a prefix cannot be loaded, or the address cannot be had.
    """
    keys = _keys(settings)
    _check_host(settings.host, keys)
    if settings.prefix_folder is not None and not settings.prefix_folder.is_dir():
        raise ConfigError(
            f"prefix_folder {settings.prefix_folder} is no folder; make it, or name another"
        )
    if settings.web:
        _check_page()
    listening = _listen(settings.host, settings.port)
    try:
        answers, default = _load(settings)
        serving = Serving(
            default,
            settings.max_new_tokens,
            settings.system,
            keys,
            prefix_folder=settings.prefix_folder,
            grace=settings.grace,
            web=settings.web,
        )
        configure_log()
        config = uvicorn.Config(
            make_app(answers, serving),
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=_LEAVE,
        )
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        page = f", a page at http://{shown}:{port}/web" if settings.web else ""
        _say(f"{', '.join(answers.store.names)} at http://{shown}:{port}{page}; Ctrl-C ends it")
        Server(config, answers.worker, settings.grace).run(sockets=[listening])
    finally:
        listening.close()


class Server(uvicorn.Server):
    """Ends in order: refuses, lets answers finish, then closes the address.

    Args:
        config: of uvicorn.
        worker: of the engine.
        grace: seconds that answers have to finish.
    """

    def __init__(self, config: uvicorn.Config, worker: Worker, grace: float) -> None:
        super().__init__(config)
        self._worker = worker
        self._grace = grace
        self._ending = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called on SIGTERM and SIGINT; a second one ends at once."""
        if self._ending:
            super().handle_exit(signal.SIGINT, frame)  # the second of which uvicorn forces
            super().handle_exit(signal.SIGINT, frame)
            return
        self._ending = True
        self._worker.close(self._grace)
        threading.Thread(target=self._end, name="ptune-shutdown", daemon=True).start()

    def _end(self) -> None:
        self._worker.join()
        time.sleep(_FLUSH)
        self.should_exit = True


def _load(settings: ServeSettings) -> tuple[Answers, str]:
    """Load everything; returns it with the name of the default prefix."""
    name = resolve_base(settings.model, settings.checkpoint)
    base = find_base(name, settings.checkpoint, settings.prompt_format, weights=False)
    device = choose_device(settings.device)
    choose_dtype(settings.dtype, device)
    if (context := context_length(base.config)) is not None:
        max_prompt_length(context, settings.max_new_tokens)
    bare = _bare_name(base)
    folders = _folders(settings, bare)
    default = _default(settings, [*folders, bare])
    bits = _bits(base, settings, list(folders.values()))
    for folder in folders.values():  # what is wrong with them is said before the weights are loaded
        read_prefix(find_whole_checkpoint(folder)[0])
    _say(f"loading {name}")
    model = load_model(
        name,
        None,
        settings.dtype,
        settings.device,
        bits,
        settings.quantization_backend,
        base.generation.value,
    )
    base = find_base(name, settings.checkpoint, settings.prompt_format)
    store = _store(settings, model, base, bare, folders)
    memory = parse_size(settings.cache_memory, "cache_memory") if settings.cache_memory else None
    prefix, copies = store.longest, store.most_device_bytes
    tokens = cache_tokens(model, base.config, settings.max_slots, memory, prefix, copies)
    worker = Worker(Engine(model, settings.max_slots, cache_tokens=tokens), settings.max_queue)
    _say(f"{precision_of(model)}, a KV cache of {tokens:,} tokens")
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
    settings: ServeSettings, model: Any, base: BaseModel, bare: str, folders: dict[str, Path]
) -> PrefixStore:
    size = settings.prefix_memory
    most = parse_size(size, "prefix_memory") if size else None
    store = PrefixStore(model, base, bare, most)
    for name, folder in folders.items():
        if passed_over := store.add(name, folder):
            _say(f"warning: {passed_over}")
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


def _check_page() -> None:
    """See that the page can be shown before a model is loaded for it.

    Raises:
        ConfigError: a package is missing.
    """
    try:
        import ptune.serving.web.page  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "ptune":
            raise
        raise ConfigError(
            f"ptune serve --web needs {error.name}, which is not installed; "
            "run pip install 'ptune[web]', or leave --web out"
        ) from error


def _keys(settings: ServeSettings) -> list[str]:
    given = [*settings.api_key, *os.environ.get("PTUNE_API_KEYS", "").split(",")]
    return [key.strip() for key in given if key.strip()]  # HTTP strips what a client sends


def _check_host(host: str, keys: list[str]) -> None:
    """Refuse to listen where others can come in without a key.

    Raises:
        ConfigError: it would.
    """
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not (local or keys):
        raise ConfigError(
            f"host {host} lets other machines in, and nobody would need a key; pass --api-key KEY "
            "or set PTUNE_API_KEYS"
        )


def _listen(host: str, port: int) -> socket.socket:
    """Take the address before a model is loaded for it.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, proto)
        if os.name != "nt":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)  # who comes before the server runs waits
    except (OSError, ValueError) as error:  # ValueError: no name that could be looked up
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{host} port {port} cannot be listened at ({reason}); "
            "use another --port, or another --host"
        ) from error
    return listening


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
