"""The application of a server: its interfaces, errors and limits in one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ptune import __version__
from ptune.data.rows import BadRecord
from ptune.errors import PTuneError
from ptune.serving.answers import Answers, deliver_to
from ptune.serving.errors import openai_error
from ptune.serving.limits import Keys, Limits
from ptune.serving.log import RequestLog
from ptune.serving.native_api import NativeApi
from ptune.serving.openai_api import OpenAIApi
from ptune.serving.options import Serving
from ptune.serving.prefix_api import PrefixApi


def make_app(answers: Answers, serving: Serving) -> FastAPI:
    """Build the application; its worker runs while it does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        answers.worker.deliver = deliver_to(asyncio.get_running_loop())
        answers.worker.start()
        yield
        answers.worker.close(serving.grace)
        await asyncio.to_thread(answers.worker.join)

    app = FastAPI(
        title="ptune",
        version=__version__,
        lifespan=lifespan,
        # FastAPI's pages load their scripts from other servers.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(NativeApi(answers, serving).router)
    app.include_router(OpenAIApi(answers, serving).router)
    if serving.prefix_folder is not None:
        prefixes = PrefixApi(answers.store, serving.prefix_folder, serving.default)
        app.include_router(prefixes.router)
    metrics, worker = answers.metrics, answers.worker
    metrics.watch("ptune_requests_waiting", "Without a slot.", lambda: worker.waiting)
    metrics.watch("ptune_slots_in_use", "Requests at work.", lambda: worker.running)
    metrics.watch("ptune_prefixes", "That can be asked for.", lambda: len(answers.store.names))

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether requests are accepted."""
        answers.check_alive()
        return {"status": "ok"}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type=metrics.media_type)

    for kind in (PTuneError, BadRecord, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)
    keys, page = Keys(serving.keys), None
    if serving.web:
        from ptune.serving.web.mount import PATH, mount_page
        from ptune.serving.web.page import Page

        page = PATH
        mount_page(app, Page(answers, serving), keys, lambda: not answers.worker.alive)
    app.add_middleware(
        Limits,
        keys=keys,
        max_body=serving.max_body,
        body_seconds=serving.body_seconds,
        page=page,
    )
    paths = frozenset(app.openapi()["paths"])  # `app.routes` does not list those of routers
    app.add_middleware(RequestLog, metrics=metrics, paths=paths, quiet=page)
    return app


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    status, body = openai_error(error)
    headers = dict(getattr(error, "headers", None) or {})  # `Allow` of a 405
    if status in (429, 503):
        headers["Retry-After"] = "1"
    return JSONResponse(body, status, headers)
