"""ROUGE and BLEU against numbers computed with the original formula."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ptune.errors import DataError
from ptune.evaluation.metrics import METRICS, mean_scores, read_predictions, score_pair

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metrics.json").read_text("utf-8"))
PAIRS = [(pair["predict"], pair["labels"]) for pair in GOLDEN["pairs"]]


@pytest.mark.parametrize("index", range(len(PAIRS)))
def test_score_pair_equals_the_original_to_the_fourth_digit(index):
    assert score_pair(*PAIRS[index]) == GOLDEN["scores"][index]


def test_mean_scores_equals_the_original():
    scores = mean_scores(iter(PAIRS))
    assert scores.means == pytest.approx(GOLDEN["mean"], abs=1e-9)
    assert scores.samples == len(PAIRS)
    assert scores.empty_predictions == 0


def test_score_pair_is_in_percent_and_not_symmetric():
    same = score_pair("今天天气很好", "今天天气很好")
    assert same == pytest.approx(dict.fromkeys(METRICS, 100.0), abs=0.001)
    assert tuple(same) == METRICS
    assert score_pair("今天天气", "今天天气很好") != score_pair("今天天气很好", "今天天气")


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u3000"])
def test_blank_text_on_either_side_scores_zero(blank):
    zero = dict.fromkeys(METRICS, 0.0)
    assert score_pair(blank, "今天天气很好") == zero
    assert score_pair("今天天气很好", blank) == zero
    assert score_pair(blank, blank) == zero


def test_empty_predictions_are_counted_and_weigh_in_the_mean():
    text = "今天天气很好"
    scores = mean_scores([(text, text), ("", text), (" \n", text), (text, "")])
    assert scores.samples == 4
    assert scores.empty_predictions == 2
    assert scores.means["bleu-4"] == 25.0


def test_no_pairs_is_an_error():
    with pytest.raises(DataError, match=r"^no predictions to score; generate some first$"):
        mean_scores([])


@pytest.mark.parametrize("text", ["。！？", "\u200b", "a", "……\u3000”", "?\n?", "<UNK>", "\x1c。"])
def test_odd_texts_do_not_raise(text):
    assert set(score_pair(text, "今天天气很好。")) == set(METRICS)
    assert set(score_pair("今天天气很好。", text)) == set(METRICS)


def test_import_is_light_and_scoring_is_quiet():
    code = (
        "import sys, ptune.evaluation.metrics as m\n"
        "heavy = {'torch', 'transformers', 'nltk', 'jieba', 'rouge_chinese'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import logging, jieba\n"
        "level = logging.getLogger('jieba').level\n"
        "m.score_pair('今天天气很好', '今天天气不好')\n"
        "assert logging.getLogger('jieba').level == level\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_words_of_the_calling_program_move_no_score():
    import jieba

    predict, labels = "黑白格纹裙", "格纹裙"
    before = score_pair(predict, labels)
    jieba.add_word("白格纹裙", freq=10**9)
    try:
        assert list(jieba.cut(predict)) == ["黑", "白格纹裙"]
        assert score_pair(predict, labels) == before
    finally:
        jieba.del_word("白格纹裙")


def test_read_predictions_of_ptune(tmp_path):
    path = tmp_path / "generated_predictions.jsonl"
    rows = [
        {"index": 0, "prompt": "问", "labels": "答", "predict": "回答"},
        {"index": 1, "prompt": "问", "labels": "答", "predict": ""},
    ]
    path.write_text("\n\n".join(json.dumps(row) for row in rows), "utf-8")
    assert read_predictions(path) == [("回答", "答"), ("", "答")]


def test_read_predictions_of_the_original(tmp_path):
    path = tmp_path / "generated_predictions.txt"
    path.write_text('\ufeff{"labels": "甲", "predict": "乙"}\n', "utf-8")
    assert read_predictions(path) == [("乙", "甲")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'labels'", r"broken JSON \(Expecting property name.*\); give a predictions file"),
        ('{"labels": "甲"}', r"no texts 'labels' and 'predict' in '{\"labels\": \"甲\"}'; give"),
        ('{"labels": "甲", "predict": 3}', r"no texts 'labels' and 'predict' in "),
        ('["甲", "乙"]', r"no texts 'labels' and 'predict' in "),
        ("[" * 100_000, r"broken JSON \("),
    ],
)
def test_read_predictions_names_the_wrong_line(tmp_path, line, message):
    path = tmp_path / "wrong.jsonl"
    path.write_text('{"labels": "甲", "predict": "乙"}\n\n' + line, "utf-8")
    with pytest.raises(DataError, match="^" + re.escape(f"{path}:3: ") + message):
        read_predictions(path)


def test_read_predictions_of_unreadable_files(tmp_path):
    path = tmp_path / "predictions.jsonl"
    with pytest.raises(DataError, match=r"predictions\.jsonl cannot be read \(.*No such file"):
        read_predictions(path)
    path.write_text("\n", "utf-8")
    with pytest.raises(DataError, match=r"predictions\.jsonl holds no predictions; generate"):
        read_predictions(path)
    path.write_bytes('{"labels": "甲", "predict": "乙"}\n'.encode("gbk"))
    with pytest.raises(DataError, match=r"predictions\.jsonl:1 or soon after: not UTF-8 \(.*give"):
        read_predictions(path)
