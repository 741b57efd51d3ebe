"""Stairs, against loops over numbers of units."""

import itertools
import math
import random

import pytest
import torch

from optimum_optin.pricing.stairs import Stairs, climbed, on_stairs

TRACE = 1e-7


def _on_stairs(table, multiple):
    last = len(table) - 1
    found = []
    for count in range(len(table)):
        higher = count if count <= multiple else min(math.ceil(count / multiple) * multiple, last)
        found.append(table[higher] - (higher - count) * TRACE * table[-1] / len(table))
    return found


def _table(stairs):
    """Times that fall are met in the middle: between the most so far and the least to come."""
    given = [max(share, stairs.shares[0]) for share in stairs.shares]
    rising = [(max(given[: place + 1]) + min(given[place:])) / 2 for place in range(len(given))]
    known = [*zip(stairs.units, rising, strict=True)]
    line = []
    for count in range(stairs.units[-1] + 1):
        (low, before), (high, after) = next(
            (one, other) for one, other in itertools.pairwise(known) if one[0] <= count <= other[0]
        )
        share = before + (after - before) * (count - low) / (high - low)
        line.append(share / len(stairs.groups) + TRACE * count / stairs.units[-1])
    return _on_stairs(line, stairs.multiple)


@pytest.mark.parametrize("seed", range(30))
def test_a_table_goes_in_lines_between_what_was_measured_and_rises(seed):
    draw = random.Random(seed)
    most = draw.randint(2, 40)
    units = (0, *sorted(draw.sample(range(1, most), draw.randint(0, min(most - 1, 5)))), most)
    shares = (0.0, *(draw.uniform(-0.1, 0.4) for _ in units[1:]))
    groups = tuple("abc"[: draw.randint(1, 3)])
    multiple = draw.choice([1, 2, 7])
    stairs = Stairs(groups, units, shares, multiple)
    assert stairs == Stairs(groups, units, shares) or multiple != 1
    table = stairs.table()
    assert table.dtype == torch.float64 and table[0] == 0 and (table.diff() > 0).all()
    assert table.tolist() == pytest.approx(_table(stairs), rel=1e-12, abs=1e-15)
    assert Stairs.from_dict(stairs.to_dict()) == stairs
    assert all(not isinstance(value, tuple) for value in stairs.to_dict().values())


def test_numbers_are_read_from_large_ones_without_loss():
    """A place of float32 is 2 from 2^24 on."""
    stairs = Stairs(("a",), (0, 3), (0.1, 0.4))
    assert stairs.table().tolist() == pytest.approx([0.1, 0.2 + TRACE / 3, 0.3 + 2 * TRACE / 3, 0.4 + TRACE], rel=1e-12)


@pytest.mark.parametrize("multiple", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("units", [1, 5, 8])
def test_between_two_multiples_all_cost_what_the_higher_one_does(units, multiple):
    table = (torch.arange(units + 1.0, dtype=torch.float64) * 3.0).square()
    assert on_stairs(table, multiple).tolist() == pytest.approx(_on_stairs(table.tolist(), multiple), rel=1e-12)
    assert [climbed(count, multiple) for count in range(30)] == [
        count if count <= multiple else math.ceil(count / multiple) * multiple for count in range(30)
    ]
