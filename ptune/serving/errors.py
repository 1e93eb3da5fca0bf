"""Errors of a server, in the form that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from ptune.data.rows import BadRecord
from ptune.errors import CheckpointError, DataError, PTuneError, RequestTooLong
from ptune.serving.answers import TimedOut
from ptune.serving.prefix_store import BadName, UnknownPrefix
from ptune.serving.worker import QueueFull, Unavailable

_STATUS: dict[type[Exception], tuple[int, str]] = {
    UnknownPrefix: (404, "model_not_found"),
    QueueFull: (429, "queue_full"),
    Unavailable: (503, "unavailable"),
    TimedOut: (504, "timeout"),
    RequestTooLong: (400, "context_length_exceeded"),
    DataError: (400, "invalid_request"),
    BadRecord: (400, "invalid_request"),
    BadName: (400, "invalid_name"),
    CheckpointError: (400, "invalid_prefix"),
}
_UNREADABLE = "There was an error parsing the body"  # FastAPI's
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def openai_error(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and body for an error; of an unforeseen one, nothing is told but its class."""
    if isinstance(error, RequestValidationError):
        message, param = _first(error)
        return 400, error_body(400, message, "invalid_request", param)
    if isinstance(error, HTTPException) and error.detail == _UNREADABLE:
        said = "the body is no JSON in UTF-8, or nested too deeply; send a JSON object"
        return 400, error_body(400, said, "invalid_request")
    if isinstance(error, HTTPException):
        return error.status_code, error_body(error.status_code, str(error.detail), None)
    for kind, (status, code) in _STATUS.items():
        if isinstance(error, kind):
            return status, error_body(status, str(error), code)
    if isinstance(error, PTuneError):
        return 500, error_body(500, str(error), "generation_failed")
    return 500, error_body(500, f"an unforeseen error ({type(error).__name__})", "internal_error")


def error_body(
    status: int, message: str, code: str | None, param: str | None = None
) -> dict[str, Any]:
    """An error as OpenAI's clients read it.

    Args:
        status: of the response; the error's type follows from it.
        message: what is wrong.
        code: for programs.
        param: the field that is wrong.
    """
    # Half a character that came in JSON cannot be sent back.
    message = message.encode("utf-8", "backslashreplace").decode()
    param = param and param.encode("utf-8", "backslashreplace").decode()
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _first(error: RequestValidationError) -> tuple[str, str | None]:
    """The first complaint of a body, and the field."""
    found = error.errors()[0]
    if found["type"] == "json_invalid":
        return f"the body is no JSON ({found.get('ctx', {}).get('error', 'unreadable')})", None
    if found["loc"] == ("body",) and found["type"] != "value_error":
        return "the body is no JSON object; send one with Content-Type: application/json", None
    path = [str(part) for part in found["loc"][1:]]
    name = ".".join(path) or None
    said = found["msg"].removeprefix("Value error, ")
    if name is None and isinstance(error.body, dict):
        first = said.partition(" ")[0]  # a contradiction begins with the field that is too much
        return said, first if first in error.body else None
    if found["type"] == "extra_forbidden":
        return f"{name} is not known here; leave it out", name
    return (f"{name}: {said}" if name else said), name
