"""Starting a command in several processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from ptune.config.settings import EvalSettings
from ptune.errors import ConfigError
from ptune.evaluation.evaluate import RESULTS_FILE, evaluate
from ptune.evaluation.predictions import PREDICTIONS_FILE
from ptune.parallel.launch import check_started, wanted_processes


class Silent:
    """A reporter of nothing."""

    def phase(self, name, total, done):
        pass

    def advanced(self, done):
        pass


PTUNE = [sys.executable, "-m", "ptune"]


@pytest.fixture
def cards(monkeypatch):
    def have(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return have


def test_as_many_as_are_asked_for(cards):
    cards(4)
    assert wanted_processes(None, None, "cuda:1") is None
    assert wanted_processes("3", None, None) == 3
    assert wanted_processes("all", None, None) == 4
    assert wanted_processes(None, 2, None) == wanted_processes(None, 2, "cpu") == 2


@pytest.mark.parametrize(
    ("there", "gpus", "processes", "device", "message"),
    [
        (2, "3", None, None, r"gpus 3 are not there (torch {torch} sees 2 cards); use fewer, or"),
        (0, "all", None, None, r"gpus all are not there (torch {torch} sees 0 cards); use fewer"),
        (2, "0", None, None, "gpus '0' is no number of cards; use 1 or more, or all"),
        (2, "two", None, None, "gpus 'two' is no number of cards; use 1 or more, or all"),
        (2, "nan", None, None, "gpus 'nan' is no number of cards; use 1 or more, or all"),
        (2, "2", None, "cuda:1", "gpus 2 and device cuda:1 exclude each other; leave one of them"),
        (2, None, 2, "cuda", "processes 2 compute on the CPU, not on cuda; leave --device out, or"),
    ],
)
def test_what_cannot_be_had(cards, there, gpus, processes, device, message):
    cards(there)
    with pytest.raises(ConfigError, match=re.escape(message.format(torch=torch.__version__))):
        wanted_processes(gpus, processes, device)


def test_torchrun_and_the_option_disagree(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_started(2)
    check_started(None)
    message = (
        "^torchrun has started 2 processes on this machine, and the options ask for 4; leave "
        "--gpus and --processes out$"
    )
    with pytest.raises(ConfigError, match=message):
        check_started(4)


def environment():
    plain = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "COV_CORE")}
    return plain | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_an_error_is_said_once(tmp_path):
    done = subprocess.run(
        [*PTUNE, "train", "--model", "tiny", "--data", "not-there.json", "--processes", "2"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=240,
    )
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1, done.stderr
    assert "not-there.json does not exist; check the path" in done.stderr


def start(folder, *options):
    data = folder / "data.json"
    data.write_text('{"content": "类型#裤", "summary": "好看的裤子"}\n' * 64, encoding="utf-8")
    words = ["--model", "tiny", "--data", str(data), "--output", "out", "--pre-seq-len", "4"]
    words += ["--max-steps", "100000", "--save-steps", "5", "--logging-steps", "1"]
    return subprocess.Popen(
        [*PTUNE, "train", *words, "--processes", "2", *options],
        cwd=folder,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )


def workers(started):
    children = psutil.Process(started.pid).children()
    return {int(child.environ()["RANK"]): child for child in children if "train" in child.cmdline()}


def said_until(started, word):
    said = ""
    while word not in said:
        line = started.stderr.readline()
        assert line, said
        said += line
    return said


def test_who_is_killed_and_a_signal(tmp_path):
    """The others end at once, the same command goes on, and Ctrl-C saves."""
    started = start(tmp_path)
    said_until(started, "step 7:")
    workers(started)[1].kill()
    began = time.monotonic()
    _, said = started.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert started.returncode == 1
    assert "process 1 was ended by SIGKILL, and so the others; give the same command again" in said
    started = start(tmp_path)
    assert re.search(r"resumed +checkpoint-\d", said_until(started, "step "))
    started.send_signal(signal.SIGINT)
    out, said = started.communicate(timeout=60)
    assert started.returncode == 130, said
    saved = re.search(r"saved in (out/checkpoint-\d+); the same command goes on", said + out)
    assert (tmp_path / Path(saved[1]) / "trainer_state.json").is_file()


def test_an_evaluation_is_divided(tmp_path):
    """The answers are those of one process, in order; the loss is the same but for rounding."""
    data = tmp_path / "data.json"
    rows = [{"content": f"编号#{n}", "summary": "好看的裤子" * (n % 4 + 1)} for n in range(9)]
    data.write_text(json.dumps(rows), encoding="utf-8")
    asked = EvalSettings(
        model="tiny", data=(data,), output=tmp_path / "one", max_new_tokens=6, device="cpu"
    )
    evaluate(asked, Silent())
    words = ["--model", "tiny", "--data", str(data), "--output", "two", "--max-new-tokens", "6"]
    done = subprocess.run(
        [*PTUNE, "eval", *words, "--processes", "2"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("written to") + done.stdout.count("written to") == 1
    one, two = (tmp_path / name / PREDICTIONS_FILE for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    losses = [json.loads((f.parent / RESULTS_FILE).read_text())["loss"] for f in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
