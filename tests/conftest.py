"""Settings of the whole suite: offline, quiet, deterministic. What tests need besides is in `surroundings.py`.

`--quick` leaves out the tests that `slow.txt` names; `--write-slow`, for a run of all tests, writes that file anew.
"""

import os
from pathlib import Path

import pytest
from slow_tests import SLOW, shared_fixtures, slow_tests

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in processes that tests start, too; see `surroundings.py`


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="without the tests that tests/slow.txt names")
    parser.addoption("--write-slow", action="store_true", help="write tests/slow.txt by what this run takes")


def pytest_configure(config):
    part = config.getoption("quick") or config.getoption("keyword") or config.getoption("markexpr")
    if config.getoption("write_slow") and (part or [Path(each).resolve() for each in config.args] != [SLOW.parent]):
        raise pytest.UsageError("--write-slow needs a run of all tests: pytest --write-slow tests")


def pytest_sessionstart(session):
    """Import the rest where tests run: a process that only hands them to others starts these at once."""
    if not session.config.pluginmanager.hasplugin("dsession"):
        session.config.pluginmanager.import_plugin("surroundings")


def pytest_collection_modifyitems(config, items):
    if config.getoption("quick"):
        slow = set(SLOW.read_text(encoding="utf-8").splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in slow])
        items[:] = [item for item in items if item.nodeid not in slow]
    if config.getoption("write_slow"):
        for item in items:
            item.user_properties.append(("shared", shared_fixtures(item)))


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("write_slow"):
        reports = [
            each for some in terminalreporter.stats.values() for each in some if hasattr(each, "user_properties")
        ]
        parts = [(each.nodeid, dict(each.user_properties)["shared"], each.when, each.duration) for each in reports]
        SLOW.write_text("".join(f"{test}\n" for test in slow_tests(parts)), encoding="utf-8")
