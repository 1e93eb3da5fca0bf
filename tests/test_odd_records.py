"""Odd values in ptune_config.json: an error of one line, or what the untouched file says."""

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest
from fixtures.checkpoints import write_json
from fixtures.odd_values import odd_values, put

from ptune.checkpoint.metadata import CONFIG_FILE, CheckpointConfig
from ptune.config.settings import TrainSettings
from ptune.errors import CheckpointError
from ptune.training.output import settings_to_json

SETTINGS = TrainSettings(data=(Path("a.json"),), eval_data=(Path("b.json"),), epochs=2.5)
RECORD = CheckpointConfig(
    "/models/chatglm-6b", "0" * 64, "chatglm", 128, False, settings=settings_to_json(SETTINGS)
)
# Read by other commands than the one that wrote them.
READ = [
    *("quantization_bit", "max_source_length", "max_target_length", "truncation"),
    *("prompt_column", "response_column", "history_column", "context_column", "eval_data"),
]


def outcome(folder, content):
    write_json(folder / CONFIG_FILE, content)
    try:
        return CheckpointConfig.read(folder)
    except CheckpointError as error:
        assert str(error).count("; ") >= 1 and "\n" not in str(error)
        return None


def test_every_field_with_every_value(tmp_path):
    refused = 0
    for name, right in asdict(RECORD).items():
        for value in odd_values(right):
            found = outcome(tmp_path, put(asdict(RECORD), name, value))
            refused += found is None
            if name in ("prompt_format", "prefix_projection", "method") and found is not None:
                assert getattr(found, name) in ("chatglm", False, True, "p-tuning")
            elif found is not None:  # any text or number, and no settings at all, may be recorded
                assert type(getattr(found, name)) is type(right)
    assert refused > 80


@pytest.mark.parametrize("name", sorted(RECORD.settings))
def test_every_setting_with_every_value(tmp_path, name):
    right = RECORD.settings[name]
    for value in odd_values(right):
        content = asdict(RECORD)
        content["settings"] = put(RECORD.settings, name, value)
        found = outcome(tmp_path, content)
        if found is None or name not in READ:
            continue
        kept = found.settings.get(name)
        kinds = {"max_source_length": int, "max_target_length": int, "eval_data": list}
        assert kept is None or type(kept) is kinds.get(name, str)


def test_combinations(tmp_path):
    draw = random.Random(1)
    for _ in range(300):
        content = asdict(RECORD)
        for name in draw.sample(sorted(content), 2):
            content = put(content, name, draw.choice([*odd_values(content.get(name))]))
        outcome(tmp_path, content)
        assert json.loads((tmp_path / CONFIG_FILE).read_text()) is not None
