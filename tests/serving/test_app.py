"""The rest of the application: the original's interface, keys, limits, health, metrics, its end."""

import json
import socket
import threading
import time

import httpx2 as httpx
import pytest
import structlog
import torch
import uvicorn
from fixtures.servers import idle, make_store, serving

from ptune.base.weights import save_tensors
from ptune.checkpoint.folder import PREFIX_FILE
from ptune.checkpoint.prefix import OFFICIAL_KEY
from ptune.commands.serve import Server
from ptune.generation.engine import Engine
from ptune.models.prefix_encoder import PrefixEncoder
from ptune.serving.answers import Answers
from ptune.serving.app import make_app
from ptune.serving.options import Serving
from ptune.serving.worker import Worker


def test_the_originals_curl_line(server):
    """Of its README, on another port."""
    body = '{"prompt": "你好", "history": []}'.encode()
    headers = {"Content-Type": "application/json"}
    answer = server.http.post("/", content=body, headers=headers)
    found = answer.json()
    assert list(found) == ["response", "history", "status", "time"]
    assert found["status"] == 200 and found["history"] == [["你好", found["response"]]]
    time.strptime(found["time"], "%Y-%m-%d %H:%M:%S")


def test_its_fields(server):
    asked = {"prompt": "类型#上衣", "temperature": 0, "history": [["你好", "你好!"]]}
    found = [server.http.post("/", json=asked).json()["response"] for _ in range(2)]
    assert found[0] == found[1]
    other = asked | {"model": "p20", "context": "上衣是红色的", "max_length": 300, "top_p": 0}
    assert server.http.post("/", json=other).json()["history"][0] == ["你好", "你好!"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "prompt: Field required"),
        ({"prompt": " "}, "prompt"),
        (
            {"prompt": "a", "history": [["b"]]},
            "history holds something else than [question, answer",
        ),
        ({"prompt": "a", "max_length": 3}, "leave no room for an answer in max_length 3"),
        ({"prompt": "a", "context": "文" * 5000}, "the context is too long: of its"),
        ({"prompt": "a", "temperature": 1e-38}, "is too small; use 0, or 0.01 on"),
        ({"prompt": "a", "beam": 3}, "beam is not known here"),
        ({"prompt": "\ud800"}, ""),
    ],
)
def test_refused(server, body, said):
    headers = {"Content-Type": "application/json"}
    answer = server.http.post("/", content=json.dumps(body), headers=headers)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", ["你好".encode("gbk"), b"[" * 5000 + b"]" * 5000])
def test_a_body_that_is_no_json(server, body):
    headers = {"Content-Type": "application/json"}
    answer = server.http.post("/", content=body, headers=headers)
    assert answer.status_code == 400
    assert "send" in answer.json()["error"]["message"]


def test_a_page_cannot_ask_behind_the_users_back(server):
    """A browser sends JSON elsewhere only where it is allowed to; plain text it sends anywhere."""
    answer = server.http.post(
        "/", content='{"prompt": "a"}', headers={"Content-Type": "text/plain"}
    )
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["error"]["message"]


def test_health_and_metrics(server):
    assert server.http.get("/health").json() == {"status": "ok"}
    server.http.post("/", json={"prompt": "你好", "model": "p3"})
    idle(server)
    text = server.http.get("/metrics").text
    assert 'ptune_answers_total{end="stop",model="p3"}' in text or 'end="length"' in text
    assert "ptune_slots_in_use 0.0" in text and "ptune_prefixes 3.0" in text
    assert "ptune_time_to_first_token_seconds_bucket" in text
    assert 'ptune_http_responses_total{path="/",status="200"}' in text


def test_keys(tiny):
    with serving(tiny, keys=["one", "zwei"]) as server:
        for key, status in (("one", 200), ("zwei", 200), ("on", 401), ("x", 401)):
            headers = {"Authorization": f"Bearer {key}"}
            assert server.http.get("/v1/models", headers=headers).status_code == status
        answer = server.http.get("/metrics")
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert server.http.get("/health").status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body(tiny, chunked):
    body = json.dumps({"prompt": "a" * 3000}).encode()
    with serving(tiny, max_body=2000) as server:
        content = (body[i : i + 500] for i in range(0, len(body), 500)) if chunked else body
        answer = server.http.post("/", content=content)
        assert answer.status_code == 413 and "2,000 bytes" in answer.json()["error"]["message"]
        assert server.http.post("/", json={"prompt": "a", "temperature": 0}).status_code == 200


def test_a_body_that_does_not_come(tiny):
    with serving(tiny, body_seconds=0.3) as server:
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as half:
            half.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
            said = b""
            while b"no body within 0.3 seconds" not in said:
                said += (part := half.recv(10_000))
                assert part
        assert said.startswith(b"HTTP/1.1 408")
        assert server.http.post("/", json={"prompt": "a", "temperature": 0}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models/", "/docs", "/redoc", "/v1/chat/completions/"])
def test_what_is_not_there_is_said_in_json(server, path):
    answer = server.http.get(path)
    assert answer.status_code == 404 and answer.json()["error"]["type"] == "not_found_error"


def test_the_line_of_several_answers(server):
    body = {"messages": [{"role": "user", "content": "你好"}], "n": 3, "max_tokens": 2}
    with structlog.testing.capture_logs() as lines:
        usage = server.http.post("/v1/chat/completions", json=body).json()["usage"]
        # The server's thread writes it after the response, perhaps after an earlier test's, too.
        for _ in range(500):
            if found := [line for line in lines if line.get("path") == "/v1/chat/completions"]:
                break
            time.sleep(0.01)
    (line,) = found
    assert (line["answers"], line["tokens"], line["end"]) == (3, 6, "length")
    assert line["prompt_tokens"] == 3 * usage["prompt_tokens"]


def test_prefixes_stay_in_their_folder(tiny, tmp_path):
    outside = tmp_path / "outside"
    inside = tmp_path / "inside"
    outside.mkdir()
    (inside / "empty").mkdir(parents=True)
    (inside / "link").symlink_to(outside)
    with serving(tiny, prefix_folder=inside) as server:
        for path in (
            "../outside",
            str(outside),
            "link",
            "absent",
            "a\0b",
            "x" * 5000,
            "link/../../outside",
        ):
            answer = server.http.post("/v1/prefixes", json={"name": "new", "path": path})
            assert answer.status_code == 400
            assert "is no folder inside" in (said := answer.json()["error"]["message"]) or (
                "cannot be followed" in said
            )
        answer = server.http.post("/v1/prefixes", json={"name": "new", "path": "empty"})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith(
            "no checkpoint in empty (found nothing)"
        )
        answer = server.http.post("/v1/prefixes", json={"name": "a/b", "path": "empty"})
        assert answer.status_code == 400 and "no name" in answer.json()["error"]["message"]
        assert server.http.delete("/v1/prefixes/p3").json()["deleted"]
        assert server.http.delete("/v1/prefixes/p3").status_code == 404
        assert server.http.delete("/v1/prefixes/tiny").status_code == 400


def test_a_client_that_waits_for_all_and_goes_frees_its_slot(server):
    body = {"messages": [{"role": "user", "content": "你好"}], "max_tokens": 1900}
    body |= {"temperature": 0, "repetition_penalty": 0.01}
    for path, asked in (("/v1/chat/completions", body), ("/", {"prompt": "你好", "top_p": 1.0})):
        with pytest.raises(httpx.ReadTimeout):  # long before the answer is there
            server.http.post(path, json=asked, timeout=httpx.Timeout(9, read=0.002))
        began = time.monotonic()
        idle(server)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("link", ["checkpoint-5", "prefix_encoder.safetensors", "notes/more"])
@pytest.mark.parametrize("through", ["", "beside"])
def test_links_of_a_checkpoint_stay_inside_too(tiny, tmp_path, link, through):
    inside = tmp_path / "inside"
    source = inside / (through or "x") / link
    source.parent.mkdir(parents=True)
    target = tmp_path / ("secret" if "safetensors" in link else "")
    (tmp_path / "secret").write_bytes(b"")
    source.symlink_to(target)
    if through:  # a link that stays inside leads to one that does not
        (inside / "x").symlink_to(inside / through)
    with serving(tiny, prefix_folder=inside) as server:
        answer = server.http.post("/v1/prefixes", json={"name": "x", "path": "x"})
    assert answer.status_code == 400
    assert "has a link that leads out of it; put the checkpoint itself there" in answer.text


def test_links_that_stay_inside_are_followed(tiny, tmp_path):
    torch.manual_seed(0)
    encoder = PrefixEncoder(tiny.model.base_model.prefix_shape, 4)
    tensors = {OFFICIAL_KEY + name: value for name, value in encoder.state_dict().items()}
    (tmp_path / "kept" / "loop").mkdir(parents=True)
    (tmp_path / "kept" / "loop" / "back").symlink_to(tmp_path / "kept")
    save_tensors(tensors, tmp_path / "kept" / PREFIX_FILE)
    (tmp_path / "newest").symlink_to("kept")
    with serving(tiny, prefix_folder=tmp_path) as server:
        answer = server.http.post("/v1/prefixes", json={"name": "x", "path": "newest"})
        assert answer.status_code == 200, answer.text
        assert server.http.get("/v1/models/x").status_code == 200


def test_a_wrong_method_is_told_the_right_one(server):
    answer = server.http.put("/v1/models")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET"


def test_max_length_of_0_is_none(tiny):
    with serving(tiny, max_new_tokens=2) as server:
        asked = {"prompt": "类型#裤", "temperature": 0}
        by_default = server.http.post("/", json=asked).json()["response"]
        assert (
            server.http.post("/", json=asked | {"max_length": 0}).json()["response"] == by_default
        )
        longer = server.http.post("/", json=asked | {"max_length": 64}).json()["response"]
        assert len(longer) > len(by_default)


def test_many_turns_too_many_are_refused_at_once(tiny, monkeypatch):
    def measured(*arguments):
        raise AssertionError("there is no context to measure")

    monkeypatch.setattr("ptune.data.prompt.render", measured)  # what measuring would call
    with serving(tiny) as server:
        asked = {"prompt": "b", "history": [["a", "a"]] * 500}
        answer = server.http.post("/", json=asked)
        assert answer.status_code == 400
        assert "shorten the conversation" in answer.text


def test_prefixes_are_not_changed_without_a_folder(server):
    assert server.http.post("/v1/prefixes", json={"name": "a", "path": "b"}).status_code == 404


def test_told_to_end_before_it_has_begun(tiny):
    """A signal that comes while the application starts."""
    worker = Worker(Engine(tiny.model, 2), 4)
    answers = Answers(
        worker, tiny.tokenizer, tiny.base.generation, make_store(tiny), 2048, timeout=60.0
    )
    config = uvicorn.Config(make_app(answers, Serving("tiny")), port=0, log_config=None)
    server = Server(config, worker, 5.0)
    server.handle_exit(15, None)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and worker.join(0)
    assert worker.refusal == "the server is shutting down"


def test_the_end(tiny):
    """What runs finishes, what comes is refused, and then the address is closed."""
    with serving(tiny, slots=2, grace=20.0) as server:
        found = []

        def ask():
            body = {"prompt": "类型#上衣", "temperature": 2, "top_p": 1.0, "max_length": 400}
            found.append(server.http.post("/", json=body).status_code)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        while server.worker.running < 2:
            time.sleep(0.001)
        time.sleep(0.05)
        server.server.handle_exit(15, None)
        late = server.http.post("/", json={"prompt": "你好"})
        assert late.status_code == 503 and late.headers["retry-after"] == "1"
        assert "shutting down" in late.json()["error"]["message"]
        assert server.http.get("/health").status_code == 503
        for thread in threads:
            thread.join(30)
        server.thread.join(20)
        assert not server.thread.is_alive()
        assert len(found) == 6 and set(found) <= {200, 503} and found.count(200) >= 2
