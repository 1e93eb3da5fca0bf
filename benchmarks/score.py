"""How long scoring takes, and how much memory: `python benchmarks/score.py [--json FILE]`.

The responses of ADGEN's dev.json against those of other records, pair by pair, by ptune and by the
formula of the original with its packages alone, in turn; medians.  Before that one pair of long
texts, each in a process of its own, whose peak is what it grows by: responses strung together, and
one character over and over, for which jieba takes the square of the length.  The original's ROUGE-L
has a table of all pairs of words, so it takes part up to 3,000 characters.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setting import DATA, cpu_name, first_there

LENGTHS = (1_000, 3_000, 10_000, 100_000)
TABLE_LENGTH = 3_000  # the longest texts for the original
Score = Callable[[str, str], dict[str, float]]


def load_original() -> Score:
    """The original's formula, percent of each metric."""
    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    jieba.setLogLevel("ERROR")

    def score(predict: str, labels: str) -> dict[str, float]:
        hypothesis, reference = (" ".join(jieba.cut(text)) for text in (predict, labels))
        found = Rouge().get_scores(hypothesis, reference)[0]
        smoothing = SmoothingFunction().method3
        bleu = sentence_bleu([list(labels)], list(predict), smoothing_function=smoothing)
        percent = {name: round(scores["f"] * 100, 4) for name, scores in found.items()}
        return percent | {"bleu-4": round(bleu * 100, 4)}

    return score


def load_ptune() -> Score:
    from ptune.evaluation.metrics import score_pair

    return score_pair


SIDES = {"ptune": load_ptune, "original": load_original}


def peak_bytes() -> int:
    """Most memory that this process has had; the system counts in KiB, on a Mac in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def score_long(side: str, predict: str, labels: str) -> dict[str, Any]:
    """Scores one pair; runs in a process of its own."""
    score = SIDES[side]()
    score(predict[:20], labels[:20])
    before, start = peak_bytes(), time.perf_counter()
    scores = score(predict, labels)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_bytes": peak_bytes() - before, "scores": scores}


def measure_short(pairs: list[tuple[str, str]], runs: int) -> dict[str, float]:
    """Median seconds of each side for all pairs; what they find must be equal."""
    sides = {name: load() for name, load in SIDES.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, Any] = {}
    for number in range(runs + 1):  # the first is to warm up
        for name, score in sides.items():
            start = time.perf_counter()
            found[name] = [score(*pair) for pair in pairs]
            if number:
                seconds[name].append(time.perf_counter() - start)
    if found["ptune"] != found["original"]:
        raise SystemExit("ptune's scores are not those of the original")
    return {name: statistics.median(times) for name, times in seconds.items()}


def measure_long(texts: list[str], lengths: list[int]) -> list[dict[str, Any]]:
    rows = []
    together = "".join(texts)
    together *= 2 * max(lengths) // len(together) + 1
    for length in lengths:
        pairs = {
            "responses": (together[:length], together[length : 2 * length]),
            "one character": ("的" * length, "的" * length),
        }
        for what, pair in pairs.items():
            for side in SIDES:
                if side == "original" and length > TABLE_LENGTH:
                    continue
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    row = pool.apply(score_long, (side, *pair))
                rows.append({"what": what, "side": side, "length": length, **row})
                print(
                    f"{what:14} {length:>9,} {side:9} {row['seconds']:8.2f} s "
                    f"{row['peak_bytes'] / 1e6:8.0f} MB",
                    flush=True,
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pairs", type=int, help="so many of the short ones")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="of the long ones")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    lines = first_there(DATA).read_text(encoding="utf-8").splitlines()
    labels = [json.loads(line)["summary"] for line in lines][: arguments.pairs]
    predicts = random.Random(0).sample(labels, len(labels))
    # First, since a process begins with the peak of the one that starts it, and this one is small.
    rows = measure_long(predicts, list(arguments.lengths))
    short = measure_short(list(zip(predicts, labels, strict=True)), arguments.runs)
    ratio = short["original"] / short["ptune"]
    for side, seconds in short.items():
        print(f"{len(labels):,} pairs {side:9} {seconds:8.2f} s")
    print(f"ptune is {ratio:.2f} times as fast")
    if arguments.json:
        machine = {"processor": cpu_name(), "cores": os.cpu_count()}
        machine |= {"python": platform.python_version()}
        figures = {"machine": machine, "pairs": len(labels), "short": short, "long": rows}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
