"""Predictions files as users name them; resuming an evaluation is in test_evaluate.py."""

import gzip
import json
import re

import pytest

from ptune.errors import ConfigError, DataError
from ptune.evaluation.predictions import Predictions, read_predictions

GOOD = '{"labels": "甲", "predict": "乙"}\n'
WANTED = "expected the texts 'labels' and 'predict', found "
ADVICE = "; give a predictions file, such as generated_predictions.jsonl"


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_of_ptune(tmp_path):
    rows = [
        {"index": 0, "prompt": "问", "labels": "答", "predict": "回答"},
        {"index": 1, "prompt": "问", "labels": "答", "predict": ""},
    ]
    path = write(tmp_path / "file", "\n\n".join(json.dumps(row) for row in rows))
    assert read_predictions(path) == [("回答", "答"), ("", "答")]


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        gzip.compress(GOOD.encode()),
        GOOD.replace("}", ', "more": {"a": [1e999, null]}}'),
    ],
    ids=["plain", "BOM", "CRLF", "gzipped", "other keys"],
)
def test_files_of_the_original(tmp_path, content):
    assert read_predictions(write(tmp_path / "predictions.txt", content)) == [("乙", "甲")]


def test_line_separators_inside_a_text(tmp_path):
    path = write(tmp_path / "file", GOOD.replace("乙", "a\u2028b\x85c"))
    assert read_predictions(path) == [("a\u2028b\x85c", "甲")]


def test_a_huge_line(tmp_path):
    text = "很长" * 2_000_000
    path = write(tmp_path / "file", json.dumps({"labels": text, "predict": "短"}) + "\n" + GOOD)
    assert read_predictions(path) == [("短", text), ("乙", "甲")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{'labels'", r"broken JSON \(Expecting property name[^;]*\)"),
        (GOOD[:-4], r"broken JSON \(Unterminated string[^;]*\)"),
        ("[" * 100_000, r"broken JSON \(nested too deeply\)"),
        (GOOD.replace("}", ', "n": NaN}'), r"broken JSON \(NaN is no number of JSON\)"),
        ('{"labels": "甲", "predict": -Infinity}', r"broken JSON \(-Infinity is no number .*\)"),
        (GOOD.replace("}", ', "predict": "丙"}'), r"broken JSON \(key 'predict' occurs twice\)"),
        (GOOD.replace("}", ', "predict": "乙"}'), r"broken JSON \(key 'predict' occurs twice\)"),
        ('{"labels": "甲"}', WANTED + "nothing as 'predict'"),
        ('{"predict": null}', WANTED + "nothing as 'labels', nothing as 'predict'"),
        ('{"labels": true, "predict": 3}', WANTED + "true as 'labels', the number 3 as 'predict'"),
        ('{"labels": {}, "predict": []}', WANTED + "an object as 'labels', an empty .* 'predict'"),
        ('["甲", "乙"]', WANTED + "a list of 2"),
        ("null", WANTED + "nothing"),
        ("0.5", WANTED + r"the number 0\.5"),
        ('"甲"', WANTED + "'甲'"),
        (r'{"labels": "甲", "predict": "a\ud83d"}',
         r"key 'predict': expected text, found half a surrogate pair '\\ud83d' at character 2"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named(tmp_path, line, reason):
    path = write(tmp_path / "wrong.jsonl", GOOD + "\n" + line)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}:3: {reason}{ADVICE}$"):
        read_predictions(path)


def test_a_number_of_too_many_digits_advises_nothing_about_python(tmp_path):
    path = write(tmp_path / "file", GOOD.replace("}", f', "n": {"1" * 5000}}}'))
    try:
        found = read_predictions(path)  # Python before 3.10.7 takes it
    except DataError as error:
        assert re.fullmatch(rf".*file:1: broken JSON \([^;]*digits[^;]*\){ADVICE}", str(error))
    else:
        assert found == [("乙", "甲")]


def test_files_that_hold_nothing_or_cannot_be_read(tmp_path):
    expected = r"^predictions file .*predictions\.jsonl holds no predictions; generate some first$"
    for content in ("", "\n", "\ufeff", "\ufeff \n"):
        with pytest.raises(DataError, match=expected):
            read_predictions(write(tmp_path / "predictions.jsonl", content))
    with pytest.raises(DataError, match=r"nope does not exist; check the path$"):
        read_predictions(tmp_path / "nope")
    told = rf"^predictions file {re.escape(str(tmp_path))} is a folder; pass "
    with pytest.raises(DataError, match=rf"{told}.*/generated_predictions.jsonl$") as caught:
        (tmp_path / "generated_predictions.jsonl").touch()
        read_predictions(tmp_path)
    assert str(tmp_path / "generated_predictions.jsonl") in str(caught.value)
    (tmp_path / "generated_predictions.jsonl").unlink()
    with pytest.raises(DataError, match=f"{told}a generated_predictions.jsonl$"):
        read_predictions(tmp_path)
    for encoding in ("gbk", "utf-16"):
        path = write(tmp_path / "predictions.jsonl", GOOD.encode(encoding))
        with pytest.raises(DataError, match=r"predictions\.jsonl:1: (byte .* is )?not UTF-8"):
            read_predictions(path)


def test_an_evaluation_of_another_identity_is_not_resumed(tmp_path):
    identity = {"seed": 1, "prefix": None, "data": "甲"}
    Predictions(tmp_path, identity).add([{"index": 0, "labels": "甲", "predict": "乙"}])
    text = (tmp_path / "eval_config.json").read_text("utf-8")
    assert text == json.dumps(identity, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert list(Predictions(tmp_path, identity).entries) == [0]
    file = tmp_path / "generated_predictions.jsonl"
    with pytest.raises(ConfigError) as refused:
        Predictions(tmp_path, {**identity, "seed": 2, "data": "乙"})
    assert str(refused.value) == (
        f"output {tmp_path} holds another evaluation (data, seed differ); pass another --output, "
        f"or delete {file}"
    )
    for damaged in ("[]", "{", None):
        config = tmp_path / "eval_config.json"
        config.unlink() if damaged is None else config.write_text(damaged)
        with pytest.raises(ConfigError) as refused:
            Predictions(tmp_path, identity)
        said = (
            "holds another evaluation (eval_config.json is missing or damaged, so all may differ)"
        )
        assert said in str(refused.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"index": 0, "labels": "甲"}', WANTED + "nothing as 'predict'"),
        ('{"index": 0, "labels": "甲", "predict": null}', WANTED + "nothing as 'predict'"),
        ('{"index": NaN, "labels": "甲", "predict": "乙"}', r"broken JSON \(NaN is no .*\)"),
        (GOOD.strip(), "expected a whole number as 'index', found nothing"),
        (GOOD.strip().replace("{", '{"index": true, '), "expected a whole .*, found true"),
        ("[]", WANTED + "an empty list"),
        ("[" * 100_000, r"broken JSON \(.*\)"),
    ],
)
def test_an_evaluation_is_not_resumed_behind_a_wrong_line(tmp_path, line, reason):
    good = GOOD.replace("{", '{"index": 1, ')
    Predictions(tmp_path, {}).add([json.loads(good)])
    file = write(tmp_path / "generated_predictions.jsonl", f"{line}\n{good}")
    expected = rf"^{re.escape(str(file))}:1 is no prediction \({reason}\); delete the file$"
    with pytest.raises(DataError, match=expected):
        Predictions(tmp_path, {})
    write(file, f"{good}{line}\n")  # at the end, it is made again
    assert list(Predictions(tmp_path, {}).entries) == [1]
