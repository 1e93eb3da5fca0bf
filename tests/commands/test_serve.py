"""`ptune serve`, as a process and by its settings."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from ptune.cli import app
from ptune.commands.serve import _listen
from ptune.errors import ConfigError

# As where `ptune[web]` is not installed.
BARE = "import sys; sys.modules['gradio'] = None; from ptune.cli import app; app()"


def test_a_server_from_the_command_line(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", BARE, "serve", "--model", "tiny", "--port", "0"],
            stderr=out,
            env=environment,
        )
    try:
        while "Ctrl-C ends it" not in (said := log.read_text()):
            assert process.poll() is None, said
            time.sleep(0.05)
        url = next(word for word in said.split() if word.startswith("http")).rstrip(";")
        body = '{"prompt": "你好", "history": []}'.encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer)["status"] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        line = json.loads(log.read_text().splitlines()[-1])
        assert (line["path"], line["status"], line["model"]) == ("/", 200, "tiny")
        assert "prompt" not in line and "你好" not in log.read_text()
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no model is given; pass --checkpoint DIR (a trained prefix) or --model DIR"),
        (["--model", "tiny", "--prefix", "ads"], "prefix ads is not NAME=DIR; use e.g. --prefix"),
        (["--model", "tiny", "--api-key", " "], "api_key ' ' is blank; write something"),
        (["--model", "tiny", "--cache-memory", "much"], "cache_memory 'much' is not a size"),
        (["--model", "tiny", "--host", "0.0.0.0"], "lets other machines in, and nobody would need"),
        (
            ["--model", "tiny", "--port", "0", "--prefix-folder", "absent"],
            "absent is no folder; make it, or name",
        ),
        (["--model", "tiny", "--port", "0", "--prefix", "a=absent"], "absent"),
        (
            ["--model", "tiny", "--port", "0", "--default-prefix", "b"],
            "default_prefix b is not among what is served; use one of tiny",
        ),
    ],
)
def test_refused(arguments, said, capsys, monkeypatch):
    monkeypatch.delenv("PTUNE_API_KEYS", raising=False)
    with pytest.raises(SystemExit) as caught:
        app(["serve", *arguments])
    assert caught.value.code == 1 and said in capsys.readouterr().err


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"127.0.0.1 port {port} cannot be listened at \(Addr"
        ):
            _listen("127.0.0.1", port).listen()


@pytest.mark.parametrize(
    ("arguments", "package", "module", "said"),
    [
        (
            [],
            "uvicorn",
            "ptune.commands.serve",
            "ptune serve needs uvicorn, which is not installed; run pip install",
        ),
        (
            ["--port", "0", "--web"],
            "gradio",
            "ptune.serving.web.page",
            "ptune serve --web needs gradio, which is not installed; run pip install "
            "'ptune[web]', or leave --web out",
        ),
    ],
)
def test_without_the_extra(arguments, package, module, said, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as caught:
        app(["serve", "--model", "tiny", *arguments])
    assert caught.value.code == 1 and said in capsys.readouterr().err
