"""The page's place in an application, and what of Gradio can be reached there."""

from __future__ import annotations

from urllib.parse import urlsplit

import gradio as gr
from fastapi import FastAPI
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ptune.serving.errors import error_body
from ptune.serving.limits import Keys
from ptune.serving.web.page import TEXTS, THEME, Page

PATH = "/web"
# What the page uses.  Gradio has more: uploads, a proxy, records of runs, a programming interface.
_EXACT = {
    *("", "/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/login", "/logout"),
    *("/gradio_api/info", "/gradio_api/queue/join", "/gradio_api/queue/data"),
    *("/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/startup-events"),
    "/gradio_api/login_check",
    *("/gradio_api/theme.css", "/gradio_api/app_id", "/gradio_api/user", "/gradio_api/token"),
}
_BELOW = ("/assets/", "/static/", "/gradio_api/heartbeat/")


def mount_page(app: FastAPI, page: Page, keys: Keys) -> None:
    """Show a page at `PATH`, to those who log in with a key where there are keys.

    Args:
        app: of the server.
        page: to show.
        keys: of the server.
    """

    @app.get("/", include_in_schema=False)
    async def to_page() -> RedirectResponse:
        return RedirectResponse(PATH + "/")

    app.add_middleware(PageGate)
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
    )


class PageGate:
    """Lets through to the page what the page uses, and no form of another site.

    Args:
        app: the rest.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        path = scope["path"] if scope["type"] == "http" else ""
        if path == PATH or path.startswith(PATH + "/"):
            status = self._refusal(path.removeprefix(PATH), dict(scope["headers"]))
            if status is not None:
                said = "no such page" if status == 404 else "asked by a page of another site"
                response = JSONResponse(error_body(status, said, None), status)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> int | None:
        if path not in _EXACT and not path.startswith(_BELOW):
            return 404
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc != headers.get(b"host"):
            return 403
        return None
