"""Which tests a quick run leaves out: those that take long, by shares of a run of all."""

from collections import Counter
from pathlib import Path

SLOW = Path(__file__).with_name("slow.txt")
_SLOW, _VERY_SLOW, _SHARED = 1 / 10_000, 1 / 3_000, 1 / 1_200


def shared_fixtures(item):
    """The fixtures of a test that are made once for several."""
    definitions = item._fixtureinfo.name2fixturedefs
    return sorted(name for name, found in definitions.items() if found[-1].scope in ("class", "module"))


def slow_tests(parts):
    """The tests to leave out of a quick run.

    The first test may make what others take: that is not its own time. A fixture that takes very long goes with all its
    tests, and what a case takes very long for with the cases by its name in its file.

    Args:
        parts: of a run of all tests: name, its `shared_fixtures`, `setup`, `call` or `teardown`, seconds.
    """
    whole = sum(seconds for *_, seconds in parts)
    taken, fixtures = Counter(), {}
    for test, shared, when, seconds in parts:
        taken[test] += 0 if shared and when == "setup" else seconds
        fixtures[test] = {(_file(test), name) for name in shared}
    quickest = {}
    for test in sorted(taken, key=taken.get):
        quickest.setdefault(test.partition("[")[0], test)
    slow = {test for test in taken if taken[test] > _SLOW * whole and test not in quickest.values()}
    slow |= {test for test in taken if taken[test] > _VERY_SLOW * whole}
    alike = {_case(test) for test in slow if "[" in test and taken[test] > 2 * _SHARED * whole}
    setups = [test for test, _, when, seconds in parts if when == "setup" and seconds > _SHARED * whole]
    made = set().union(*(fixtures[test] for test in setups))
    return sorted(slow | {test for test in taken if _case(test) in alike or fixtures[test] & made})


def _file(test):
    return test.partition("::")[0]


def _case(test):
    return _file(test), test.partition("[")[2]
