"""ROUGE-1/2/L over jieba words and BLEU-4 over characters, in percent, for Chinese text.

The formula is that of the original P-Tuning v2 evaluation, so that numbers can be compared:
https://github.com/THUDM/ChatGLM-6B/blob/main/ptuning/main.py
"""

from __future__ import annotations

import functools
import json
import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptune.errors import DataError

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
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    cut, rouge = _word_tools()
    hypothesis, reference = (" ".join(cut(text)) for text in (predict, labels))
    by_metric = rouge.get_scores(hypothesis, reference)[0]
    scores = {name: round(by_metric[name]["f"] * 100, 4) for name in METRICS[:3]}
    smoothing = SmoothingFunction().method3
    bleu = sentence_bleu([list(labels)], list(predict), smoothing_function=smoothing)
    return {**scores, "bleu-4": round(float(bleu) * 100, 4)}


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


def read_predictions(path: Path) -> list[tuple[str, str]]:
    """Reads (predict, labels) pairs from a predictions file, ptune's or the original's.

    Both are JSON Lines with the texts `labels` and `predict`; other keys are ignored.

    Raises:
        DataError: The file cannot be read or is not a predictions file.
    """
    pairs = []
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    pairs.append(_parse_prediction(line, f"{path}:{number}"))
    except OSError as error:
        raise DataError(f"predictions file {path} cannot be read ({error}); check it") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number + 1} or soon after: not UTF-8 ({error.reason}); "
            f"give a predictions file as ptune wrote it"
        ) from error
    if not pairs:
        raise DataError(f"predictions file {path} holds no predictions; generate some first")
    return pairs


def _parse_prediction(line: str, source: str) -> tuple[str, str]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{source}: broken JSON ({getattr(error, 'msg', error)}); "
            f"give a predictions file, one JSON object a line"
        ) from error
    if not isinstance(value, dict):
        value = {}
    predict, labels = value.get("predict"), value.get("labels")
    if not isinstance(predict, str) or not isinstance(labels, str):
        raise DataError(
            f"{source}: no texts 'labels' and 'predict' in {line.strip()[:60]!r}; "
            f"give a predictions file, such as generated_predictions.jsonl"
        )
    return predict, labels


@functools.cache
def _word_tools() -> tuple[Any, Any]:
    """Returns jieba's word cutter and the ROUGE scorer.

    The cutter is a private one, so that a user dictionary of the calling program moves no score.
    Loading it is kept quiet: jieba logs its progress, and both packages warn on import.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jieba
        from rouge_chinese import Rouge

    logger = logging.getLogger("jieba")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        tokenizer = jieba.Tokenizer()
        tokenizer.initialize()
    finally:
        logger.setLevel(level)
    return tokenizer.cut, Rouge()
