"""The example data and the demo's settings."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ptune.config.resolve import resolve
from ptune.config.settings import TrainSettings
from ptune.data.records import read_records
from ptune.evaluation.metrics import METRICS

EXAMPLE = Path(__file__).parents[2] / "examples" / "AdvertiseGen"


def lines(name: str) -> list[dict[str, str]]:
    text = (EXAMPLE / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_sizes_and_form() -> None:
    train, dev = lines("train.json"), lines("dev.json")
    assert (len(train), len(dev)) == (2000, 200)
    assert all(record.keys() == {"content", "summary"} for record in train + dev)
    assert len(read_records([EXAMPLE / "train.json", EXAMPLE / "dev.json"]).records) == 2200


def test_dev_was_not_trained_on() -> None:
    train, dev = lines("train.json"), lines("dev.json")
    assert not {r["content"] for r in train} & {r["content"] for r in dev}
    assert not {r["summary"] for r in train} & {r["summary"] for r in dev}
    assert len({r["summary"] for r in train}) > 1900


def test_script_makes_the_same_files(tmp_path: Path) -> None:
    script = EXAMPLE / "make.py"
    subprocess.run([sys.executable, script, "--output", tmp_path], check=True)
    for name in ("train.json", "dev.json"):
        assert (tmp_path / name).read_bytes() == (EXAMPLE / name).read_bytes()


def test_demo_settings_are_settings() -> None:
    data = {"data": (EXAMPLE / "train.json",)}
    settings = resolve(TrainSettings, data, EXAMPLE / "demo.yaml")
    assert settings.model == "tiny"


def test_demo_shows_what_it_promises(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "examples" / "AdvertiseGen")
    done = subprocess.run(
        [sys.executable, "examples/AdvertiseGen/demo.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "utf-8", "COLUMNS": "120"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "demo" / "demo_results.json").read_text(encoding="utf-8"))
    assert results.keys() == {"before", "after", "seconds"}
    before, after = results["before"], results["after"]
    assert before.keys() == after.keys() == set(METRICS)
    for metric in ("rouge-l", "bleu-4"):
        assert after[metric] >= 2 * before[metric]
    commands = [line.split("$ ptune ")[1] for line in done.stdout.splitlines() if "$ ptune" in line]
    assert [command.split()[0] for command in commands] == ["eval", "train", "eval", "merge"]
    assert done.stdout.count("reference") == 3 and "ptune chat" in done.stdout
