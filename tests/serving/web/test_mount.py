"""What of the page can be reached, and by whom."""

import json

import pytest

pytest.importorskip("gradio")

from fixtures.servers import serving

from ptune.serving.web.texts import _NOTICES, CHINESE, ENGLISH, notice


@pytest.fixture(scope="module")
def web(tiny):
    with serving(tiny, web=True) as found:
        yield found


def test_the_page_is_found_from_the_root(web):
    answer = web.http.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/web/")
    assert web.http.get("/web").headers["location"] == "/web/"
    assert "gradio" in web.http.get("/web/").text
    assert web.http.post("/", json={"prompt": "裙"}).json()["status"] == 200


def test_what_the_page_does_not_use_is_not_there(web):
    assert not any("web" in path for path in web.http.get("/openapi.json").json()["paths"])
    for method, path in (
        ("POST", "upload"),
        ("GET", "file=/etc/hostname"),
        ("GET", "proxy=https://example.com/"),
        ("POST", "vibe-edit"),
        ("GET", "runs"),
        ("POST", "run/answer"),
        ("POST", "process_recording"),
        ("GET", "monitoring"),
        ("GET", "openapi.json"),
    ):
        for place in (f"/web/gradio_api/{path}", f"/web/{path}"):
            answer = web.http.request(method, place)
            assert answer.status_code == 404, place
            assert answer.json()["error"]["message"] == "no such page"
    for place in ("/webs", "/web/../health", "/web/assets/../../health", "/web//etc"):
        assert web.http.get(place).status_code in (200, 404)


@pytest.mark.parametrize("path", ["/web/assets/../../../settings.py", "/web/static/..%2f..%2fx"])
def test_no_file_outside_the_page(web, path):
    assert web.http.get(path).status_code in (403, 404)


def test_a_page_of_another_site_cannot_ask(web):
    body = {"data": [], "fn_index": 0, "session_hash": "x"}
    for origin in ("http://evil.example", "null"):
        answer = web.http.post("/web/gradio_api/queue/join", json=body, headers={"Origin": origin})
        assert answer.status_code == 403
        assert answer.json()["error"]["message"] == "asked by a page of another site"


def test_files_are_named_to_nobody(web):
    """Gradio would copy a file of the machine, or fetch an address, that a value names."""
    file = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
    for value in (file, [file], [{"content": [{"type": "file", "file": file}]}], "\ud800"):
        body = {"data": ["tiny", value], "fn_index": 0, "session_hash": "x"}
        content = json.dumps(body)
        answer = web.http.post(
            "/web/gradio_api/queue/join",
            content=content,
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "no values that the page sends"
    assert web.http.get("/health").status_code == 200


def test_the_browser_is_told_to_fetch_nothing_elsewhere(web):
    headers = web.http.get("/web/").headers
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_a_foreign_name_of_the_machine(web, tiny):
    for path in ("/web/", "/v1/models"):
        answer = web.http.get(path, headers={"Host": "evil.example:8000"})
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "foreign_host"
        for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
            assert web.http.get(path, headers={"Host": host}).status_code == 200
    assert web.http.get("/health", headers={"Host": "evil.example"}).status_code == 200
    with serving(tiny, keys=["k"]) as server:
        headers = {"Host": "any.example", "Authorization": "Bearer k"}
        assert server.http.get("/v1/models", headers=headers).status_code == 200


def test_with_keys_nothing_answers_without(tiny):
    with serving(tiny, web=True, keys=["secret"]) as server:
        open_without = ("app_id", "startup-events", "token", "heartbeat/x", "info", "queue/data")
        for path in ("config", *(f"gradio_api/{name}" for name in open_without)):
            assert server.http.get(f"/web/{path}").status_code == 401, path
        body = {"data": [], "fn_index": 0, "session_hash": "x"}
        assert server.http.post("/web/gradio_api/queue/join", json=body).status_code == 401
        assert server.http.get("/webs").status_code == 401
        assert server.http.get("/").status_code == 401
        wrong = {"username": "anybody", "password": "wrong"}
        assert server.http.post("/web/login", data=wrong).status_code == 400
        right = wrong | {"password": "secret"}
        assert server.http.post("/web/login", data=right).json() == {"success": True}
        assert server.http.get("/web/config").status_code == 200


def test_both_languages_say_the_same():
    assert ENGLISH.keys() == CHINESE.keys()
    for kind in _NOTICES:
        english, chinese = (notice(kind, way, 12, 34) for way in ("en-US,zh", "zh-TW"))
        assert english.isascii() and not chinese.isascii()
        assert all((number in english) == (number in chinese) for number in ("12", "34"))
