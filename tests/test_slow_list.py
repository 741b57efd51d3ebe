"""Which tests a quick run leaves out."""

import re

import pytest
from slow_tests import SLOW, shared_fixtures, slow_tests


def test_of_each_test_a_case_is_left_unless_it_takes_very_long():
    calls = {"a[1]": 4, "a[2]": 3, "a[3]": 4, "b": 3, "c[1]": 3, "c[2]": 0.5, "d": 13, "e": 9_969.5}
    parts = [(test, [], "call", seconds) for test, seconds in calls.items()]
    assert slow_tests(parts) == ["a[1]", "a[3]", "c[1]", "d", "e"]


def test_what_one_test_makes_for_others_is_left_out_with_them():
    fixture = [("x::a[1]", ["made"], "setup", 20), ("x::b", ["made"], "call", 1), ("y::b", ["made"], "call", 1)]
    case = [
        ("x::b[3]", [], "call", 40),
        ("x::c[3]", [], "call", 0.3),
        ("x::c[4]", [], "call", 0.3),
        ("y::c[3]", [], "call", 1),
    ]
    assert slow_tests([*fixture, *case, ("z", [], "call", 5000)]) == ["x::a[1]", "x::b", "x::b[3]", "x::c[3]", "z"]


def test_what_a_test_makes_for_others_in_less_is_not_its_own_time():
    shared = [("x::a", ["made"], "setup", 4), ("x::a", ["made"], "call", 0.5), ("x::b", ["made"], "call", 0.5)]
    own = [("x::c", [], "setup", 4), ("x::c", [], "call", 0.5)]
    assert slow_tests([*shared, *own, ("z", [], "call", 5000)]) == ["x::c", "z"]


@pytest.fixture(scope="module")
def made():
    return 1


def test_fixtures_of_a_module_are_shared(request, made, tmp_path):
    assert shared_fixtures(request.node) == ["made"]


def test_what_is_left_out_is_there():
    """A test by another name would be run again, and nobody would see that the list has got old."""
    listed = {line.partition("[")[0] for line in SLOW.read_text(encoding="utf-8").splitlines()}
    for test in sorted(listed):
        file, _, name = test.partition("::")
        assert re.search(rf"def {name}\(", (SLOW.parents[1] / file).read_text(encoding="utf-8")), test
