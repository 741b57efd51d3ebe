"""Which tests a quick run leaves out: those that take long, by shares of a run of all."""

from collections import Counter
from pathlib import Path

SLOW = Path(__file__).with_name("slow.txt")
_SLOW, _VERY_SLOW = 1 / 3000, 1 / 600


def slow_tests(parts):
    """The tests to leave out of a quick run, given what each takes: its name, `setup`, `call` or `teardown`, seconds.

    The first case of a test may make what all others take: then all go. So do cases by one name in one file.
    """
    whole = sum(seconds for *_, seconds in parts)
    taken, made = Counter(), Counter()
    for test, when, seconds in parts:
        taken[test] += seconds
        if when == "setup":
            made[_function(test)] = max(made[_function(test)], seconds)
    quickest = {}
    for test in sorted(taken, key=taken.get):
        quickest.setdefault(_function(test), test)
    very = {test for test in taken if max(taken[test], made[_function(test)]) > _VERY_SLOW * whole}
    alike = {_case(test) for test in very if "[" in test and taken[test] > 2 * _VERY_SLOW * whole}
    slow = {test for test in taken if taken[test] > _SLOW * whole and test not in quickest.values()}
    return sorted(slow | very | {test for test in taken if _case(test) in alike})


def _function(test):
    return test.partition("[")[0]


def _case(test):
    return test.partition("::")[0], test.partition("[")[2]
