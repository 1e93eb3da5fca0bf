"""Finds the paragraphs of documents that a question is about, by BM25.

    python retrieve.py documents --question "滤网多久换一次？" > found.txt
    python retrieve.py documents --data dev.json --output dev-context.json

Terms are characters and pairs of neighbours, which need no dictionary.  The formula is Okapi's
with the usual constants (https://doi.org/10.1561/1500000019).
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

SATURATION, LENGTH_WEIGHT = 1.5, 0.75


def read_paragraphs(paths: list[Path]) -> dict[str, str]:
    """Read text files, or the .txt files of folders.

    Returns:
        Paragraphs, between which there is a blank line, by file name and place: `faq.txt 3`.
    """
    files = [f for path in paths for f in (sorted(path.glob("*.txt")) if path.is_dir() else [path])]
    found: dict[str, str] = {}
    for file in files:
        paragraphs = file.read_text(encoding="utf-8").strip().split("\n\n")
        found |= {f"{file.name} {place}": text for place, text in enumerate(paragraphs, 1)}
    return found


def split_terms(text: str) -> list[str]:
    """Split a text into its characters and its pairs of neighbours."""
    letters = [letter for letter in text.lower() if letter.isalnum()]
    return letters + [a + b for a, b in pairwise(letters)]


class Index:
    """Paragraphs, with what BM25 has to know of their terms."""

    def __init__(self, texts: list[str]) -> None:
        self._counts = [Counter(split_terms(text)) for text in texts]
        self._lengths = [counts.total() for counts in self._counts]
        self._mean = sum(self._lengths) / len(texts)
        frequency = Counter(term for counts in self._counts for term in counts)
        self._weight = {
            term: math.log(1 + (len(texts) - count + 0.5) / (count + 0.5))
            for term, count in frequency.items()
        }

    def best(self, question: str, count: int) -> list[int]:
        """Places of the paragraphs that suit a question best, the best one first."""
        terms = [term for term in split_terms(question) if term in self._weight]
        scores = [
            sum(self._weight[term] * self._saturated(place, term) for term in terms)
            for place in range(len(self._counts))
        ]
        return sorted(range(len(scores)), key=lambda place: -scores[place])[:count]

    def _saturated(self, place: int, term: str) -> float:
        count = self._counts[place][term]
        relative = 1 - LENGTH_WEIGHT + LENGTH_WEIGHT * self._lengths[place] / self._mean
        return count * (SATURATION + 1) / (count + SATURATION * relative)


def add_contexts(
    records: list[dict[str, str]], paragraphs: dict[str, str], count: int
) -> tuple[int, int]:
    """Give each record a `context`, and take its `paragraph`, the right one's name, out.

    Returns:
        How many records named a paragraph, and how many of those are in their context.
    """
    names, texts = list(paragraphs), list(paragraphs.values())
    index, named, hits = Index(texts), 0, 0
    for record in records:
        places = index.best(record["question"], count)
        record["context"] = "\n".join(texts[place] for place in places)
        if (right := record.pop("paragraph", None)) is not None:
            named += 1
            hits += right in (names[place] for place in places)
    return named, hits


def main(words: list[str] | None = None) -> None:
    """Print what is found for a question, or write a data file with a context column."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("documents", type=Path, nargs="+", help="text files, or folders of them")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--question", help="print the paragraphs for this question")
    asked.add_argument("--data", type=Path, help="JSON Lines with a question in each record")
    parser.add_argument("--output", type=Path, help="with --data: the file to write")
    parser.add_argument("--top", type=int, default=1, help="paragraphs for each question")
    arguments = parser.parse_args(words)
    if (arguments.data is None) != (arguments.output is None):
        parser.error("--data and --output belong together")
    paragraphs = read_paragraphs(arguments.documents)
    if not paragraphs:
        parser.error(f"no .txt file in {', '.join(map(str, arguments.documents))}")
    if arguments.question is not None:
        texts = list(paragraphs.values())
        print("\n".join(texts[i] for i in Index(texts).best(arguments.question, arguments.top)))
        return
    lines = arguments.data.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if line.strip()]
    named, hits = add_contexts(records, paragraphs, arguments.top)
    written = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    arguments.output.write_text(written, encoding="utf-8")
    print(f"{len(records)} questions with a context each in {arguments.output}")
    if named:
        print(f"the right paragraph is in {hits} of {named} contexts")


if __name__ == "__main__":
    main()
