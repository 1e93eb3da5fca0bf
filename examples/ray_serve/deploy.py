"""`ptune serve` as a Ray Serve application: each replica has an engine of its own.

serve_config.yaml names `application` and gives it the settings.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.context import _get_global_client
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ptune.config.declaration import declared
from ptune.config.resolve import resolve
from ptune.config.settings import ServeSettings
from ptune.errors import ConfigError
from ptune.files.home import expand_home
from ptune.serving.build import build_app
from ptune.serving.limits import api_keys, check_host
from ptune.serving.log import configure_log

_NOT_HERE = {
    "host": "write it under http_options",
    "port": "write it under http_options",
    "prefix_folder": "it would load a prefix into one replica alone; list prefixes under args",
}


def application(args: dict[str, Any]) -> serve.Application:
    """What Ray Serve deploys.

    Args:
        args: settings of `ptune serve`, by their names in docs/cli.md with `_` for `-`.

    Raises:
        ConfigError: a setting that is none, or has no meaning here.
    """
    names = {field.name for field in declared(ServeSettings)}
    for name, value in args.items():
        if name not in names:
            raise ConfigError(f"{name} in args is no setting; see `ptune serve --help` for all")
        if name in _NOT_HERE:
            raise ConfigError(f"{name} {value} in args has no effect; {_NOT_HERE[name]}")
    settings = resolve(ServeSettings, args)
    for pair in settings.prefix:
        _check_absolute(Path(pair.partition("=")[2]), "prefix")
    if settings.checkpoint is not None:
        _check_absolute(settings.checkpoint, "checkpoint")
    return Replica.options(graceful_shutdown_timeout_s=settings.grace).bind(settings)


def _check_absolute(folder: Path, name: str) -> None:
    if not expand_home(folder, name).is_absolute():
        raise ConfigError(
            f"{name} {folder} in args is no absolute path, and replicas run in folders of their "
            "own; write it from / on"
        )


@serve.deployment
@serve.ingress()
class Replica:
    """An engine and the application before it, in a process of its own.

    Args:
        settings: of `ptune serve`; model and prefixes are loaded here, never sent.
    """

    def __init__(self, settings: ServeSettings) -> None:
        check_host(_proxy_host(), api_keys(settings.api_key))
        configure_log()
        self._built, self._answers = build_app(settings, _say)
        self._built.add_middleware(
            ReplicaHeader, replica=serve.get_replica_context().replica_id.unique_id
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application; Ray runs its lifespan, which starts and ends the engine."""
        return self._built

    def check_health(self) -> None:
        """Asked by Ray, which replaces a replica whose engine is dead.

        Raises:
            Unavailable: it is.
        """
        self._answers.check_alive()


class ReplicaHeader:
    """Adds to each response which replica gave it, as `X-Replica`.

    Args:
        app: the rest.
        replica: its id.
    """

    def __init__(self, app: ASGIApp, replica: str) -> None:
        self._app = app
        self._header = (b"x-replica", replica.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], self._header]}
            await send(message)

        await self._app(scope, receive, named)


def _proxy_host() -> str:
    """The address that Ray's proxies listen at, which Ray tells in no public way."""
    return str(_get_global_client().http_config.host)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
