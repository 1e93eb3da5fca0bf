"""JSON without NaN, and that nothing is written as JSON in another way."""

import ast
import json
import math
from pathlib import Path

import pytest

import ptune
from ptune.errors import PTuneError
from ptune.files.json_text import to_json

# They write for ptune itself (keys of a cache, what a process of its own hands back), or show a
# value in an error of their own.
OTHERS = {
    "files/json_text.py",
    "data/example_cache.py",
    "base/schema.py",
    "data/messages.py",
    "commands/doctor/torch_probe.py",
    "quantization/backends/probe.py",
}


def test_values():
    value = {"文": [1, 2.5, None, True, "😀"]}
    assert to_json(value) == '{"文": [1, 2.5, null, true, "😀"]}'
    assert json.loads(to_json(value, indent=2, sort_keys=True)) == value
    assert to_json({"文": 1}, ensure_ascii=True) == '{"\\u6587": 1}'


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("place", "wrap"),
    [
        ("a number", lambda n: n),
        ("loss", lambda n: {"x": 1.0, "loss": n}),
        ("rows.1.total", lambda n: {"rows": [{"total": 1}, {"total": n}]}),
    ],
)
def test_numbers_that_are_not_finite(place, wrap, number):
    message = f"^{place} {number} is not finite, which JSON cannot hold; mend what it comes from$"
    with pytest.raises(PTuneError, match=message):
        to_json(wrap(number))


def test_other_mistakes_are_not_hidden():
    endless = []
    endless.append(endless)
    with pytest.raises((ValueError, RecursionError)):
        to_json(endless)


def test_all_json_goes_through_it():
    package = Path(ptune.__file__).parent
    for file in package.rglob("*.py"):
        name = file.relative_to(package).as_posix()
        if name in OTHERS or name.startswith("tiny/"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("dumps", "dump"):
                assert not (isinstance(node.value, ast.Name) and node.value.id == "json"), name
