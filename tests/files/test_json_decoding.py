"""JSON text to values: keys that occur twice, and what a decoder complains about."""

import json

import pytest

from ptune.files.json_decoding import DECODER, RepeatedKey, problem_of


def test_values_are_those_of_the_library():
    text = '{"a": [1, {"b": null, "c": {}}], "d": "\\u6587", "e": 1.5}'
    assert DECODER.decode(text) == json.loads(text)
    assert list(DECODER.decode('{"b": 1, "a": 2}')) == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "a"),
        ('[{"a": 1}, {"a": 1, "c": 2, "b": 2, "b": 3, "c": 3}]', "c"),
        ('{"x": {"y": {"a": 1, "\\u0061": 2}}}', "a"),
    ],
)
def test_key_that_occurs_twice(text, key):
    with pytest.raises(RepeatedKey, match=f"^key '{key}' occurs twice$"):
        DECODER.decode(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('"a', "Unterminated string"),
        ('"\n"', "Invalid control character"),
        ("[1", "Expecting ',' delimiter"),
        ("1" * 5000, "a number of more than 4,300 digits"),
        ("[" * 10**5, "nested too deeply"),
        ('{"a": 1, "a": 2}', "key 'a' occurs twice"),
    ],
)
def test_problems(text, problem):
    with pytest.raises((ValueError, RecursionError)) as caught:
        DECODER.decode(text)
    assert problem_of(caught.value) == problem
