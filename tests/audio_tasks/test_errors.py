"""Edits and their rates, against plain recursion and a bootstrap."""

import random
from functools import cache

import evaluate
import numpy as np
import pytest

from optimum_optin.audio_tasks.errors import characters, edits, error_rate, plain_text, words
from optimum_optin.evaluation import error_rate_metric
from optimum_optin.evaluation.error_rate_metric import ErrorRates


def _by_recursion(some, others):
    @cache
    def distance(one, other):
        if not one or not other:
            return one + other
        same = some[one - 1] == others[other - 1]
        return min(
            distance(one - 1, other) + 1, distance(one, other - 1) + 1, distance(one - 1, other - 1) + (not same)
        )

    return distance(len(some), len(others))


def test_edits_are_the_fewest():
    drawn = random.Random(0)
    for _ in range(200):
        some, others = ([drawn.choice("abc") for _ in range(drawn.randrange(9))] for _ in range(2))
        assert edits(some, others) == _by_recursion(some, others), (some, others)


@pytest.mark.parametrize(
    ("said", "heard", "expected"),
    [("three one four", "three four", 1), ("a b", "b a", 2), ("", "uh", 1), ("so", "", 1), ("same", "same", 0)],
)
def test_edits_of_words(said, heard, expected):
    assert edits(words(said), words(heard)) == expected


def test_rates_are_over_all_utterances_with_an_error_like_that_of_a_bootstrap():
    drawn = np.random.default_rng(0)
    lengths = drawn.integers(1, 9, 400)
    counts = drawn.binomial(lengths, 0.2)
    rate, error = error_rate(counts.tolist(), lengths.tolist())
    assert rate == counts.sum() / lengths.sum()
    rows = drawn.integers(0, 400, (2000, 400))
    assert error == pytest.approx((counts[rows].sum(1) / lengths[rows].sum(1)).std(), rel=0.08)
    assert error_rate([1], [4]) == (0.25, None)
    assert error_rate([3, 0], [1, 1])[0] == 1.5, "more may be heard than was said"
    with pytest.raises(ValueError, match="all transcripts are empty"):
        error_rate([1, 0], [0, 0])


def test_the_metric_for_evaluate_loads_from_its_file():
    for metric in (ErrorRates(), evaluate.load(error_rate_metric.__file__)):
        given = {"predictions": ["three won", "Two."], "references": ["three one four four", "two"]}
        assert metric.compute(**given)["wer"] == pytest.approx(4 / 5)
        assert metric.compute(**given, exact=False)["wer"] == pytest.approx(3 / 5)


def test_plain_text():
    assert plain_text("  Don\N{RIGHT SINGLE QUOTATION MARK}t  PANIC, please!\n") == "don't panic please"
    assert plain_text("10 % \N{EM DASH} \N{FULLWIDTH LATIN CAPITAL LETTER A}") == "10 a"
    assert characters("a  b") == ["a", " ", "b"]
