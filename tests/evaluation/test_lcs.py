"""The length of the longest common subsequence against the table it replaces."""

import random

import pytest

from ptune.evaluation import lcs
from ptune.evaluation.lcs import lcs_length


def by_table(first, second):
    row = [0] * (len(second) + 1)
    for word in first:
        before = row
        row = [0]
        for column, other in enumerate(second):
            longer = before[column] + 1 if word == other else max(before[column + 1], row[-1])
            row.append(longer)
    return row[-1]


def random_words(random_, vocabulary, longest):
    return [str(random_.randrange(vocabulary)) for _ in range(random_.randrange(longest))]


@pytest.mark.parametrize("block", [1, 2, 7, 64, lcs.BLOCK])
def test_random_words(monkeypatch, block):
    monkeypatch.setattr(lcs, "BLOCK", block)
    random_ = random.Random(block)
    for _ in range(200):
        vocabulary = random_.choice([1, 2, 5, 50])
        first = random_words(random_, vocabulary, 40)
        second = random_words(random_, vocabulary, 40)
        assert lcs_length(first, second) == by_table(first, second)


def test_nothing_in_common():
    assert lcs_length([], []) == lcs_length(["a"], []) == lcs_length([], ["a"]) == 0
    assert lcs_length(["a", "b"], ["c"]) == 0


def test_long_texts_of_several_blocks():
    # With a table, 900 million entries.
    words = [str(number) for number in range(30_000)]
    assert lcs_length(words, words) == 30_000
    assert lcs_length(words, words[::-1]) == 1
    assert lcs_length(words, words[20_000:] + words[:20_000]) == 20_000
    assert lcs_length(["a", "b"] * 15_000, ["b"] * 30_000) == 15_000
