"""ROUGE and BLEU against numbers computed with the original formula."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from ptune.errors import DataError
from ptune.evaluation.metrics import METRICS, mean_scores, score_pair

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metrics.json").read_text("utf-8"))
PAIRS = [(pair["predict"], pair["labels"]) for pair in GOLDEN["pairs"]]


@pytest.mark.parametrize("index", range(len(PAIRS)))
def test_score_pair_equals_the_original_to_the_fourth_digit(index):
    assert score_pair(*PAIRS[index]) == GOLDEN["scores"][index]


@pytest.fixture(scope="module")
def original():
    """The formula of the original, with packages alone."""
    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    cut = jieba.Tokenizer().lcut

    def score(predict, labels):
        (rouge,) = Rouge().get_scores(" ".join(cut(predict)), " ".join(cut(labels)))
        smoothing = SmoothingFunction().method3
        bleu = sentence_bleu([list(labels)], list(predict), smoothing_function=smoothing)
        found = {name: round(rouge[name]["f"] * 100, 4) for name in METRICS[:3]}
        return found | {"bleu-4": round(bleu * 100, 4)}

    return score


# Words, ends of sentences, quotes, blanks that are words of their own to jieba, half an emoji.
WORDS = "这件 外套 采用 厚实 的 羊毛 面料 裙 很 好看 a b1 500ml 3.5"
MARKS = "。 。 ！ ？ ? …… ...... . ， “ ” ’"
BLANKS = [" ", "\n", "\n\n", "\t", "\r\n", "\u3000", "\u2028", "\x1c"]
PIECES = [*WORDS.split(), *MARKS.split(), *BLANKS, "\ud83d"]


def test_random_texts_score_as_with_the_original(original):
    random_ = random.Random(0)
    for _ in range(400):
        pieces = random_.choices(PIECES, k=random_.choice([3, 10, 40]))
        predict, labels = (
            "".join(random_.choices(pieces, k=random_.randrange(1, 60))) for _ in range(2)
        )
        if predict.strip() and labels.strip():
            assert score_pair(predict, labels) == original(predict, labels), (predict, labels)


def test_blank_lines_inside_a_text_are_words_of_rouge():
    assert score_pair("甲\n乙", "甲 乙")["rouge-l"] == 100.0
    assert score_pair("甲\n\n乙", "甲 乙")["rouge-l"] == 80.0


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


def test_long_texts_are_scored():
    # With a table of all pairs of words, 190 million entries.
    labels = "这件外套采用厚实的羊毛面料,穿起来温暖又轻便。" * 1_000
    predict = "穿起来很好看,黑色的裙子!" * 1_500
    scores = score_pair(predict, labels)
    assert all(0 < score < 100 for score in scores.values())
    assert score_pair(labels, labels) == pytest.approx(dict.fromkeys(METRICS, 100.0), abs=0.001)
    assert score_pair("好", labels)["bleu-4"] == 0.0  # no number is too small for the formula


def test_no_pairs_is_an_error():
    with pytest.raises(DataError, match=r"^no predictions to score; generate some first$"):
        mean_scores([])


@pytest.mark.parametrize(
    "text", ["。！？", "\u200b", "a", "……\u3000”", "?\n?", "<UNK>", "\x1c。", "\ud83d", "\0"]
)
def test_odd_texts_score_between_0_and_100(text):
    for pair in ((text, "今天天气很好。"), ("今天天气很好。", text), (text, text)):
        scores = score_pair(*pair)
        assert tuple(scores) == METRICS
        assert all(math.isfinite(score) and 0 <= score <= 100 for score in scores.values())


def test_import_is_light_and_scoring_is_quiet(tmp_path):
    code = (
        "import sys, ptune.evaluation.metrics as m\n"
        "heavy = {'torch', 'transformers', 'nltk', 'jieba', 'rouge_chinese'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "m.score_pair('今天天气很好', '今天天气不好')\n"
        "import logging\n"
        "assert logging.getLogger('jieba').level == logging.DEBUG  # as jieba leaves it\n"
    )
    root = Path(__file__).parents[2]
    # Compiled anew, since that is when packages warn; before Python 3.12 in silence by default.
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment |= {"PYTHONWARNINGS": "always:invalid escape sequence"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_words_of_the_calling_program_move_no_score():
    import jieba

    predict, labels = "黑白格纹裙", "格纹裙"
    before = score_pair(predict, labels)
    dictionary = jieba.dt
    dictionary.check_initialized()
    words, total = dict(dictionary.FREQ), dictionary.total
    jieba.add_word("白格纹裙", freq=10**9)
    try:
        assert list(jieba.cut(predict)) == ["黑", "白格纹裙"]
        assert score_pair(predict, labels) == before
    finally:
        dictionary.FREQ, dictionary.total = words, total  # `del_word` leaves traces
