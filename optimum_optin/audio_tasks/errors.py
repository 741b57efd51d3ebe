"""Errors of transcripts: edits from what was said to what was understood, and their rate with a standard error."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import numpy as np


def edits(reference: Sequence, hypothesis: Sequence) -> int:
    """The fewest substitutions, insertions and deletions that make one sequence of the other (Levenshtein 1966)."""
    signs: dict = {}
    some, others = (np.array([signs.setdefault(each, len(signs)) for each in side]) for side in (reference, hypothesis))
    row = np.arange(len(others) + 1)
    steps = np.arange(len(others) + 1)
    for place, sign in enumerate(some, 1):
        changed = np.minimum(row[:-1] + (others != sign), row[1:] + 1)  # substituted or kept, or deleted
        best = np.concatenate([[place], changed]) - steps
        row = np.minimum.accumulate(best) + steps  # and inserted
    return int(row[-1])


def words(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


def characters(text: str) -> list[str]:
    """The characters of a text, with one space between words."""
    return list(" ".join(text.split()))


def plain_text(text: str) -> str:
    """A text in small letters without punctuation, but for apostrophes inside words."""
    kept = (
        sign if sign in "'\N{RIGHT SINGLE QUOTATION MARK}" or unicodedata.category(sign)[0] not in "PS" else " "
        for sign in unicodedata.normalize("NFKC", text).lower()
    )
    return " ".join("".join(kept).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())


def error_rate(counts: Sequence[int], lengths: Sequence[int]) -> tuple[float, float | None]:
    """Edits for each unit that was said, and the standard error by the delta method over utterances.

    Args:
        counts: edits in each utterance.
        lengths: words or characters that were said in each.

    Returns:
        sum(counts) / sum(lengths), which may be more than 1, and its error; `None` for a single utterance.

    Raises:
        ValueError: nothing was said in any of them.
    """
    found, said = np.asarray(counts, float), np.asarray(lengths, float)
    if said.sum() == 0:
        raise ValueError("all transcripts are empty: there is no rate of errors.")
    rate = float(found.sum() / said.sum())
    if len(found) < 2:
        return rate, None
    off = found - rate * said
    return rate, math.sqrt(len(found) / (len(found) - 1) * float((off**2).sum())) / float(said.sum())
