"""Who may ask; what a request must bring is in test_app.py."""

import asyncio

import pytest

from ptune.errors import ConfigError
from ptune.serving.limits import Keys, Limits, api_keys, check_host


def test_keys_and_hosts(monkeypatch):
    monkeypatch.setenv("PTUNE_API_KEYS", "one, ,two")
    assert api_keys([" three "]) == ["three", "one", "two"]
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        check_host(host, [])
    for host in ("0.0.0.0", "::", "example.org", "10.0.0.1"):
        check_host(host, ["key"])
        with pytest.raises(ConfigError, match="pass --api-key KEY or set PTUNE_API_KEYS"):
            check_host(host, [])


def test_a_request_that_is_cancelled_ends_its_answer():
    seen = []

    async def app(scope, receive, send):
        seen.append("begun")
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("ended")

    async def receive():
        if not seen:
            return {"type": "http.request", "body": b"", "more_body": False}
        return await asyncio.Future()

    async def run():
        scope = {"type": "http", "path": "/", "headers": []}
        request = asyncio.ensure_future(Limits(app, Keys([]), 10, 60.0)(scope, receive, None))
        while not seen:
            await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait({request})
        assert request.cancelled() and len(asyncio.all_tasks()) == 1

    asyncio.run(run())
    assert seen == ["begun", "ended"]
