"""Who may ask, and how much: addresses, keys, and the size of a body."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import os
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ptune.errors import ConfigError
from ptune.serving.errors import error_body

# What tells nothing but that the server is there needs no key: load balancers ask it.
_OPEN = ("/health",)
_LAST_LINES = 0.05  # seconds


class Keys:
    """The keys of a server; without any, it is open.

    Args:
        keys: of which a client must know one.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def __bool__(self) -> bool:
        """Whether a client must know one."""
        return bool(self._keys)

    def know(self, key: str | bytes) -> bool:
        """Whether a key is one of them."""
        key = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
        # All are compared, so that the time tells nothing.
        found = [hmac.compare_digest(key.strip(), known) for known in self._keys]
        return any(found)


def api_keys(given: Sequence[str]) -> list[str]:
    """The keys that let in: those of `--api-key`, and of PTUNE_API_KEYS between commas."""
    keys = [*given, *os.environ.get("PTUNE_API_KEYS", "").split(",")]
    return [key.strip() for key in keys if key.strip()]  # HTTP strips what a client sends


def is_loopback(host: str) -> bool:
    """Whether a name or address can be of this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(host: str, keys: list[str]) -> None:
    """Refuse to listen where others can come in without a key.

    Raises:
        ConfigError: it would.
    """
    if not (is_loopback(host) or keys):
        raise ConfigError(
            f"host {host} lets other machines in, and nobody would need a key; pass --api-key KEY "
            "or set PTUNE_API_KEYS"
        )


class Limits:
    """Refuses a request before its body is read.

    Args:
        app: the rest.
        keys: of which a request must bring one as `Authorization: Bearer KEY`.
        max_body: bytes.
        body_seconds: in which a body must have come.
        page: below this path a page asks for the key in its own way.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        max_body: int,
        body_seconds: float,
        page: str | None = None,
    ) -> None:
        self._app = app
        self._keys = keys
        self._max_body = max_body
        self._body_seconds = body_seconds
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not self._keys and scope["path"] not in _OPEN and not _is_local(headers):
            refusal = _refusal(
                403,
                "the Host of this request is no name of this machine, as if another site's page "
                "had asked; ask 127.0.0.1 or localhost, or start the server with --api-key",
                "foreign_host",
            )
            await refusal(scope, receive, send)
            return
        if self._keys and not self._is_open(scope["path"]) and not self._knows(headers):
            refusal = _refusal(
                401, "no valid key: send Authorization: Bearer KEY", "invalid_api_key"
            )
            await refusal(scope, receive, send)
            return
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._max_body:
            await self._too_large()(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(receive), self._body_seconds)
        except asyncio.TimeoutError:  # before Python 3.11 a class of its own
            refusal = _refusal(408, f"no body within {self._body_seconds:g} seconds", "body_late")
            await refusal(scope, receive, send)
            return
        if body is None:
            await self._too_large()(scope, receive, send)
            return
        answering = asyncio.ensure_future(self._app(scope, again(body, receive), send))
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
            # A server calls a client gone as well when it has all of the answer.
            await asyncio.wait({answering}, timeout=0 if answering.done() else _LAST_LINES)
        finally:  # Ray Serve tells that a client has gone by cancelling this
            gone.cancel()
            while not answering.done():  # before Python 3.12, `wait_for` may swallow a cancellation
                answering.cancel()
                await asyncio.wait({answering}, timeout=_LAST_LINES)
        with contextlib.suppress(asyncio.CancelledError):
            await answering

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        return self._keys.know(key) and kind.lower() == b"bearer"

    def _is_open(self, path: str) -> bool:
        of_page = self._page is not None and f"{path}/".startswith(f"{self._page}/")
        return path in _OPEN or of_page

    async def _read(self, receive: Receive) -> bytes | None:
        """Read a body, which may not say how long it is; None if it is too large."""
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_body:
                return None
        return body

    def _too_large(self) -> JSONResponse:
        return _refusal(413, f"the body is larger than {self._max_body:,} bytes", "body_too_large")


def _is_local(headers: dict[bytes, bytes]) -> bool:
    """Whether a request names this machine: a name of others may lead here, by DNS rebinding."""
    return is_loopback(
        urlsplit(f"//{headers.get(b'host', b'localhost').decode('latin-1')}").hostname or ""
    )


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def again(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read, and then what comes after it: that the client has gone."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _refusal(status: int, message: str, code: str) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(error_body(status, message, code), status, headers)
