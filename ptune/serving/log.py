"""One structured line for each request, without what was said unless that is asked for."""

from __future__ import annotations

import logging
import sys
import time
from contextvars import ContextVar
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ptune.serving.metrics import Metrics

_details: ContextVar[dict[str, Any] | None] = ContextVar("ptune_request_details", default=None)
_logger = structlog.get_logger("ptune.serve")


def configure_log() -> None:
    """Write JSON lines to stderr."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def note_answer(**details: Any) -> None:
    """Add an answer to the line of its request; of several, numbers and texts are added up."""
    if (known := _details.get()) is None:
        return
    if "tokens" in known:
        details["answers"] = known.get("answers", 1) + 1
        for name in {"tokens", "prompt_tokens", "prompt", "answer"} & details.keys():
            details[name] = known[name] + details[name]
        details["end"] = details["end"] if known["end"] == "stop" else known["end"]
    known.update(details)


def log_answer(**details: Any) -> None:
    """Write the line of an answer that is no request of its own."""
    _logger.info("answer", **details)


class RequestLog:
    """Writes the lines, and counts the responses.

    Args:
        app: the rest.
        metrics: of the server.
        paths: that are counted by their names; all others are one.
        quiet: no lines for what lies below; the many parts of a page.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, paths: frozenset[str], quiet: str | None = None
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths
        self._quiet = quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        of_page = self._quiet is not None and f"{scope.get('path')}/".startswith(f"{self._quiet}/")
        if scope["type"] != "http" or of_page:
            await self._app(scope, receive, send)
            return
        details: dict[str, Any] = {}
        token = _details.set(details)
        began, status = time.monotonic(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            _details.reset(token)
            path = scope["path"]
            self._metrics.responded(path if path in self._paths else "other", status)
            _logger.info(
                "request",
                method=scope["method"],
                path=path,
                status=status or "client gone",
                seconds=round(time.monotonic() - began, 4),
                client=(scope.get("client") or ["?"])[0],
                **details,
            )
