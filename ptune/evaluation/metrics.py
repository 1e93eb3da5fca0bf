"""ROUGE-1/2/L over jieba words and BLEU-4 over characters, in percent, for Chinese text.

The formula is that of the original P-Tuning v2 evaluation, so that numbers can be compared:
https://github.com/THUDM/ChatGLM-6B/blob/main/ptuning/main.py
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ptune.errors import DataError
from ptune.evaluation.lcs import lcs_length

METRICS = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")


@dataclass(frozen=True)
class Scores:
    """Scores of a set of predictions.

    Attributes:
        means: Mean over all pairs by metric name, in percent.
        samples: Number of pairs.
        empty_predictions: How many of them had a blank prediction, which scores 0.
    """

    means: dict[str, float]
    samples: int
    empty_predictions: int


def score_pair(predict: str, labels: str) -> dict[str, float]:
    """Scores one prediction against its reference.

    A blank text on either side scores 0 everywhere; the original stopped with an error there.

    Returns:
        Percent, rounded to four digits, for each name in `METRICS`.
    """
    if not predict.strip() or not labels.strip():
        return dict.fromkeys(METRICS, 0.0)
    scores = (*_rouge(predict, labels), _bleu(predict, labels))
    return {name: round(score * 100, 4) for name, score in zip(METRICS, scores, strict=True)}


def mean_scores(pairs: Iterable[tuple[str, str]]) -> Scores:
    """Averages `score_pair` over (predict, labels) pairs.

    Raises:
        DataError: There is no pair.
    """
    sums = dict.fromkeys(METRICS, 0.0)
    samples = empty_predictions = 0
    for predict, labels in pairs:
        samples += 1
        empty_predictions += not predict.strip()
        for name, value in score_pair(predict, labels).items():
            sums[name] += value
    if not samples:
        raise DataError("no predictions to score; generate some first")
    means = {name: total / samples for name, total in sums.items()}
    return Scores(means=means, samples=samples, empty_predictions=empty_predictions)


def _rouge(predict: str, labels: str) -> tuple[float, float, float]:
    """Returns ROUGE-1, ROUGE-2 and ROUGE-L as `rouge_chinese.Rouge.get_scores` does.

    Its own ROUGE-L keeps a table of all pairs of words, 2 GB for two texts of 6,000 characters.
    """
    _, _, formulas = _word_tools()
    hypothesis, reference = _sentences(predict), _sentences(labels)
    words, reference_words = (
        [word for sentence in sentences for word in sentence.split(" ")]
        for sentences in (hypothesis, reference)
    )
    length = lcs_length(words, reference_words)
    return (
        formulas.rouge_n(hypothesis, reference, 1)["f"],
        formulas.rouge_n(hypothesis, reference, 2)["f"],
        formulas.f_r_p_rouge_n(len(words), len(reference_words), length)["f"],
    )


def _bleu(predict: str, labels: str) -> float:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smoothing = SmoothingFunction().method3
    return float(sentence_bleu([list(labels)], list(predict), smoothing_function=smoothing))


def _sentences(text: str) -> list[str]:
    """Returns the sentences that ROUGE sees, with one space between words.

    A blank line inside a text is a sentence of one empty word, which counts like any other.
    """
    cut_words, cut_sentences, _ = _word_tools()
    # A run of words of one character takes jieba the square of its length: 100,000 half a minute.
    sentences = cut_sentences(" ".join(cut_words(text)))
    return [" ".join(sentence.split()) for sentence in sentences if sentence]


@functools.cache
def _word_tools() -> tuple[Any, Any, Any]:
    """Returns jieba's cutter of words, rouge_chinese's of sentences, and its formulas.

    The first is a private one, so that a user dictionary of the calling program moves no score.
    Loading it is kept quiet: jieba logs its progress, and both packages warn on import.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jieba
        from rouge_chinese import Rouge, rouge_score

    logger = logging.getLogger("jieba")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        tokenizer = jieba.Tokenizer()
        tokenizer.initialize()
    finally:
        logger.setLevel(level)
    return tokenizer.cut, Rouge().cut_sent, rouge_score
