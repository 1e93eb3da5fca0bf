"""examples/nginx/ptune.conf does what it says, before two servers."""

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx2 as httpx
import openai
import pytest

FILE = Path(__file__).parents[2] / "examples" / "nginx" / "ptune.conf"
RUN = [sys.executable, "-c", "from ptune.cli import app; app()", "serve", "--model", "tiny"]
# As few as may be, so that a server is full soon.
RUN += ["--max-slots", "1", "--max-queue", "0", "--cache-memory", "64MB", "--api-key", "k", "--web"]
ASK = {"model": "tiny", "prompt": "你好", "temperature": 0}
ENDLESS = ASK | {"max_tokens": 2000, "extra_body": {"repetition_penalty": 0.3}, "stream": True}

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")


def free_ports(count):
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listening.getsockname()[1] for listening in found]


def configuration(folder, ports):
    """The file for other ports, with all that nginx writes in a folder."""
    text = FILE.read_text(encoding="utf-8")
    for written, port in zip((8000, 8001, 8002), ports, strict=True):
        text, found = re.subn(rf"127\.0\.0\.1:{written}\b", f"127.0.0.1:{port}", text)
        assert found == (1 if written == 8000 else 2)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    own = ["access_log off;", *(f"{kind}_temp_path {folder / kind};" for kind in kinds)]
    (folder / "nginx.conf").write_text(text.replace("http {\n", f"http {{\n{' '.join(own)}\n", 1))
    main = (
        f"pid {folder / 'pid'}; error_log {folder / 'error.log'}; daemon off; master_process off;"
    )
    return ["nginx", "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "early", "-g", main]


def wait(what, condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"{what} never comes")


def reachable(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture
def both(tmp_path):
    """Two servers and nginx before them."""
    front, *ports = free_ports(3)
    command = configuration(tmp_path, [front, *ports])
    subprocess.run([*command, "-t"], check=True, capture_output=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    logs = [tmp_path / f"log{port}" for port in ports]
    processes = []
    try:
        for port, log in zip(ports, logs, strict=True):
            with log.open("w") as out:
                args = [*RUN, "--port", str(port)]
                processes.append(subprocess.Popen(args, stderr=out, env=environment))
        processes.append(subprocess.Popen(command))
        wait("nginx", lambda: reachable(front))
        wait("servers", lambda: all("Ctrl-C ends it" in log.read_text() for log in logs))
        url = f"http://127.0.0.1:{front}"
        yield SimpleNamespace(
            url=url,
            client=openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0),
            servers=[f"http://127.0.0.1:{port}" for port in ports],
            processes=processes,
            logs=logs,
        )
    finally:
        for process in processes:
            process.kill()
            process.wait()


def at_work(server):
    text = httpx.get(f"{server}/metrics", headers={"Authorization": "Bearer k"}).text
    return int(float(re.search(r"^ptune_slots_in_use (.*)$", text, re.M)[1]))


def the_page_stays_at_one_server(url):
    """Which knows who has logged in there, and by whose page it is asked."""
    with httpx.Client(base_url=url, headers={"Origin": url}) as browser:
        assert browser.get("/web/config").status_code == 401
        browser.post("/web/login", data={"username": "a", "password": "k"}).raise_for_status()
        assert {browser.get("/web/config").status_code for _ in range(6)} == {200}


def begin(client):
    """A stream of which the first pieces have come, and the last will not come soon."""
    stream = client.completions.create(**ENDLESS)
    list(itertools.islice(stream, 3))
    return stream


def test_two_servers_behind_one_address(both):
    client, servers = both.client, both.servers
    a_key_is_passed_on(both)
    errors_are_the_servers_own(both)

    the_page_stays_at_one_server(both.url)
    pieces_come_one_by_one(both)
    first = begin(client)
    assert sum(map(at_work, servers)) == 1
    second = begin(client)
    assert list(map(at_work, servers)) == [1, 1]
    for _ in range(5):  # full ones are no dead ones
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(**ASK)
        assert caught.value.body["code"] == "queue_full"
        assert caught.value.response.headers["retry-after"] == "1"
    first.close()
    second.close()
    wait("the end", lambda: not any(map(at_work, servers)))

    # What one is too full for, the other one takes.
    for server in servers:
        own = openai.OpenAI(base_url=f"{server}/v1", api_key="k", max_retries=0)
        stream = begin(own)
        for _ in range(4):
            assert client.completions.create(**ASK).choices[0].text
        assert at_work(server) == 1
        stream.close()
        wait("the end", lambda: not any(map(at_work, servers)))

    both.processes[0].kill()
    both.processes[0].wait()
    for _ in range(4):
        assert client.completions.create(**ASK).choices[0].text
    stream = begin(client)
    both.processes[1].send_signal(signal.SIGTERM)
    wait("refusal", lambda: httpx.get(f"{servers[1]}/health").status_code == 503)
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(**ASK)
    assert (caught.value.status_code, caught.value.body["code"]) == (503, "unavailable")
    list(itertools.islice(stream, 3))  # goes on within --grace
    stream.close()
    assert both.processes[1].wait(30) == 0


def a_key_is_passed_on(both):
    assert both.client.completions.create(**ASK).choices[0].text
    with pytest.raises(openai.AuthenticationError) as caught:
        both.client.with_options(api_key="l").completions.create(**ASK)
    assert caught.value.body["code"] == "invalid_api_key"


def errors_are_the_servers_own(both):
    http = httpx.Client(base_url=both.url, headers={"Authorization": "Bearer k"})
    assert http.get("/health").json() == {"status": "ok"}
    answer = http.post("/", json={"prompt": "a" * (1 << 20)})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    for path in ("/metrics", "/v1/prefixes", "/v1/prefixes/ads"):
        answer = http.get(path)
        assert answer.status_code == 404 and "nginx" in answer.text


def pieces_come_one_by_one(both):
    body = {**ASK, "repetition_penalty": 0.3, "max_tokens": 200, "stream": True}
    known = {"Authorization": "Bearer k"}
    with httpx.stream("POST", f"{both.url}/v1/completions", json=body, headers=known) as answer:
        parts = [part.count(b"data: ") for part in answer.iter_raw()]
    assert sum(parts) > 200 and max(parts) < 10  # in nginx's buffers fit more
