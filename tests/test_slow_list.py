"""Which tests a quick run leaves out."""

import re

from slow_tests import SLOW, slow_tests


def test_of_each_test_a_case_is_left_unless_it_takes_very_long():
    calls = {"a[1]": 4, "a[2]": 3, "a[3]": 4, "b": 3, "c[1]": 3, "c[2]": 0.5, "d": 20, "e": 5962.5}
    parts = [(test, "call", seconds) for test, seconds in calls.items()]
    assert slow_tests(parts) == ["a[1]", "a[3]", "c[1]", "d", "e"]


def test_what_one_case_makes_for_others_is_left_out_with_them():
    made_by_fixture = [("x::a[1]", "setup", 20), ("x::a[2]", "setup", 0), ("x::a[2]", "call", 1)]
    made_by_case = [("x::b[3]", "call", 40), ("x::c[3]", "call", 1), ("x::c[4]", "call", 1), ("y::c[3]", "call", 1)]
    slow = slow_tests([*made_by_fixture, *made_by_case, ("z", "call", 5000)])
    assert slow == ["x::a[1]", "x::a[2]", "x::b[3]", "x::c[3]", "z"]


def test_what_is_left_out_is_there():
    """A test by another name would be run again, and nobody would see that the list has got old."""
    listed = {line.partition("[")[0] for line in SLOW.read_text(encoding="utf-8").splitlines()}
    for test in sorted(listed):
        file, _, name = test.partition("::")
        assert re.search(rf"def {name}\(", (SLOW.parents[1] / file).read_text(encoding="utf-8")), test
