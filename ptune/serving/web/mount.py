"""The page's place in an application, and what of Gradio can be reached there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ptune.data.messages import check_text
from ptune.serving.errors import error_body
from ptune.serving.limits import Keys, again
from ptune.serving.web.page import CSS, TEXTS, THEME, Page

PATH = "/web"
# What the page uses.  Gradio has more: uploads, a proxy, records of runs, a programming interface.
_JOIN = "/gradio_api/queue/join"
_OPEN = {
    *("/", "/theme.css", "/favicon.ico", "/manifest.json", "/login", "/gradio_api/theme.css"),
    *("/gradio_api/login_check", "/gradio_api/user"),
}
_INSIDE = {
    *("/config", "/logout", "/gradio_api/info", _JOIN, "/gradio_api/queue/data"),
    *("/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/startup-events"),
    *("/gradio_api/app_id", "/gradio_api/token"),
}
_FILES, _HEARTBEAT = ("/assets/", "/static/"), "/gradio_api/heartbeat/"
# Nothing is fetched from other servers, and no other page shows this one.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_LOOK = 0.25  # seconds, after which a stream sees that the server has ended


def mount_page(app: FastAPI, page: Page, keys: Keys, ended: Callable[[], bool]) -> None:
    """Show a page at `PATH`, to those who log in with a key where there are keys.

    Args:
        app: of the server.
        page: to show.
        keys: of the server.
        ended: whether the server answers nothing more, so that the page's streams should end.
    """

    @app.get("/", include_in_schema=False)
    async def to_page() -> RedirectResponse:
        return RedirectResponse(PATH + "/")

    gr.mount_gradio_app(
        app,
        page.build(),
        PATH,
        footer_links=["settings"],
        auth=(lambda name, key: keys.know(key)) if keys else None,
        auth_message="Any name, and an API key as the password. 用户名任意，密码为 API key。",
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        i18n=TEXTS,
        theme=THEME,
        css=CSS,
    )
    (gradio,) = (r.app for r in app.routes if getattr(r, "path", None) == PATH)  # type: ignore[attr-defined]
    known = gradio.tokens if keys else None
    app.add_middleware(PageGate, tokens=known, ended=ended)


class PageGate:
    """Lets through to the page what the page sends, from those who have logged in.

    What Gradio is sent may name files, which it would copy, or download: only plain values pass.

    Args:
        app: the rest.
        tokens: of those who have logged in; None where nobody has to.
        ended: as of `mount_page`.
    """

    def __init__(
        self, app: ASGIApp, tokens: dict[str, str] | None, ended: Callable[[], bool]
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        path = scope["path"] if scope["type"] == "http" else ""
        if not f"{path}/".startswith(f"{PATH}/"):
            await self._app(scope, receive, send)
            return
        path = path.removeprefix(PATH)
        answer = self._refuse(path, dict(scope["headers"]))
        if answer is None and path == _JOIN:
            answer, receive = await _check_values(receive)
        if answer is not None:
            await answer(scope, receive, send)
            return
        await self._pass_on(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answering = asyncio.ensure_future(self._app(scope, receive, with_headers))
        try:
            while not answering.done() and not self._ended():
                await asyncio.wait({answering}, timeout=_LOOK)
        finally:
            if not answering.done():
                answering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await answering
        if not begun:
            await _refusal(503, "the server is shutting down")(scope, receive, send)

    def _refuse(self, path: str, headers: dict[bytes, bytes]) -> Response | None:
        if path == "":
            return RedirectResponse(PATH + "/")
        is_open = path in _OPEN or path.startswith(_FILES)
        if not (is_open or path in _INSIDE or path.startswith(_HEARTBEAT)):
            return _refusal(404, "no such page")
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc != headers.get(b"host"):
            return _refusal(403, "asked by a page of another site")
        if not (is_open or self._knows(headers.get(b"cookie", b"").decode("latin-1"))):
            return _refusal(401, f"log in at {PATH}/ first")
        return None

    def _knows(self, cookies: str) -> bool:
        if self._tokens is None:
            return True
        try:
            found = SimpleCookie(cookies)
        except CookieError:
            return False
        return any(
            name.startswith("access-token-") and morsel.value in self._tokens
            for name, morsel in found.items()
        )


async def _check_values(receive: Receive) -> tuple[Response | None, Receive]:
    """Read what the page sends; a refusal of anything but plain values, and what gives it again."""
    body = (await receive()).get("body", b"")  # all of it: `Limits` has read it
    try:
        plain = all(_is_plain(value) for value in json.loads(body)["data"])
    except (ValueError, KeyError, TypeError, RecursionError):
        plain = False
    return None if plain else _refusal(400, "no values that the page sends"), again(body, receive)


def _is_plain(value: Any) -> bool:
    """Whether a value names no file; half a character is a ValueError."""
    if isinstance(value, str):
        check_text(value, "", blank_is_fine=True)
    return value is None or isinstance(value, str | int | float)


def _refusal(status: int, said: str) -> JSONResponse:
    return JSONResponse(error_body(status, said, None), status)
