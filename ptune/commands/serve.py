"""`ptune serve`: loads a model and its prefixes, and answers over HTTP."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from types import FrameType

from ptune.config.settings import ServeSettings
from ptune.errors import ConfigError, missing_package

try:
    import uvicorn

    from ptune.serving.build import build_app
    from ptune.serving.limits import api_keys, check_host
    from ptune.serving.log import configure_log
    from ptune.serving.worker import Worker
except ModuleNotFoundError as error:
    raise missing_package(error, "ptune serve", "serve") from error

_LEAVE = 2  # seconds for clients that send or read nothing more
_FLUSH = 0.2  # seconds in which last pieces are sent when the engine has ended
# Seconds that a thread waits for another to let it run.  The engine asks again after each of a
# step's operators: at Python's 5 ms, pieces of 32 answers would keep it from computing meanwhile.
_SWITCH = 0.0002


def run_serve(settings: ServeSettings) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        settings: of `ptune serve`.

    Raises:
        PTuneError: the model or a prefix cannot be loaded, or the address cannot be had.
    """
    check_host(settings.host, api_keys(settings.api_key))
    listening = _listen(settings.host, settings.port)
    try:
        app, answers = build_app(settings, _say)
        configure_log()
        sys.setswitchinterval(_SWITCH)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=_LEAVE,
        )
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        page = f", a page at http://{shown}:{port}/web/" if settings.web else ""
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
