"""ROUGE (Lin 2004): how much of a reference a text says, by words, by pairs of words, and in the same order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

NAMES = ("rouge1", "rouge2", "rougeL")


def rouge(text: str, reference: str) -> dict[str, float]:
    """F1 of single words, of pairs of neighbours, and of the longest common subsequence.

    Words are runs of the letters a to z and of digits, in lower case, and not stemmed, as in the package `rouge_score`.
    """
    said, wanted = words(text), words(reference)
    common = (_shared(said, wanted, 1), _shared(said, wanted, 2), longest_common(said, wanted))
    counts = [(len(said), len(wanted)), (len(said) - 1, len(wanted) - 1), (len(said), len(wanted))]
    return {name: _f1(number, *count) for name, number, count in zip(NAMES, common, counts, strict=True)}


def words(text: str) -> list[str]:
    """The words that count."""
    return re.findall(r"[a-z0-9]+", text.lower())


def longest_common(some: Sequence[str], others: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(others) + 1)
    for each in some:
        before = row
        row = [0]
        for place, other in enumerate(others):
            row.append(before[place] + 1 if each == other else max(row[-1], before[place + 1]))
    return row[-1]


def _shared(some: Sequence[str], others: Sequence[str], size: int) -> int:
    found = (Counter(zip(*(each[start:] for start in range(size)), strict=False)) for each in (some, others))
    one, other = found
    return sum((one & other).values())


def _f1(common: int, said: int, wanted: int) -> float:
    return 2 * common / (said + wanted) if common else 0.0
