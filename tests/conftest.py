"""Settings of the whole suite: offline, quiet, deterministic. What tests need besides is in `surroundings.py`.

`--quick` leaves out the tests that `slow.txt` names; `--write-slow`, for a run of all tests, writes that file anew: it
names what takes more than a 3,000th of the run, where a quicker case of the same test stays, or more than a 600th.
"""

import os
from collections import Counter
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in processes that tests start, too; see `surroundings.py`

SLOW = Path(__file__).with_name("slow.txt")
_SLOW, _VERY_SLOW = 1 / 3000, 1 / 600


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="without the tests that tests/slow.txt names")
    parser.addoption("--write-slow", action="store_true", help="write tests/slow.txt by what this run takes")


def pytest_sessionstart(session):
    """Import the rest where tests run: a process that only hands them to others starts these at once."""
    if not session.config.pluginmanager.hasplugin("dsession"):
        session.config.pluginmanager.import_plugin("surroundings")


def pytest_collection_modifyitems(config, items):
    if config.getoption("quick"):
        slow = set(SLOW.read_text(encoding="utf-8").splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in slow])
        items[:] = [item for item in items if item.nodeid not in slow]


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("write_slow"):
        parts = [each for reports in terminalreporter.stats.values() for each in reports if hasattr(each, "duration")]
        slow = slow_tests([(part.nodeid, part.when, part.duration) for part in parts])
        SLOW.write_text("".join(f"{test}\n" for test in slow), encoding="utf-8")


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
