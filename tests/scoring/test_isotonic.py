"""Pooled costs against loops: neighbours pooled one by one, and the lower convex hull of points."""

import pytest
import torch

from optimum_optin.scoring.merges import _increments
from optimum_optin.scoring.removal import _pool


def _pooled(values):
    blocks = []  # [mean, length]
    for value in values.tolist():
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, length = blocks.pop()
            total = blocks[-1][1] + length
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * length) / total, total]
    return torch.tensor([mean for mean, length in blocks for _ in range(length)], dtype=torch.float64)


def _hull(tried, losses):
    """Steps of the greatest convex function below the points that begins at 0, falling ones as 0."""
    points = [(0, 0.0), *zip(tried, losses.tolist(), strict=True)]
    heights = []
    for place in range(tried[-1] + 1):
        lines = [
            left[1] + (right[1] - left[1]) * (place - left[0]) / (right[0] - left[0])
            for left in points
            for right in points
            if left[0] <= place <= right[0] and left[0] < right[0]
        ]
        heights.append(min(lines))
    return torch.tensor(heights, dtype=torch.float64).diff().clamp_min(0)


def _cases():
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(length, generator=generator, dtype=torch.float64) for length in (1, 2, 3, 8, 40, 40)]
    ties = [(2 * draw).round() for draw in draws]
    return [*draws, *ties, torch.zeros(5, dtype=torch.float64), 1e-12 * draws[3], 1e12 * draws[3]]


@pytest.mark.parametrize("values", _cases())
def test_costs_of_removal_are_pooled_with_their_neighbours(values):
    expected = _pooled(values)
    torch.testing.assert_close(_pool(values), expected, rtol=0, atol=1e-12 * float(values.abs().max()))


@pytest.mark.parametrize("losses", _cases())
def test_costs_of_merging_are_steps_of_the_lower_convex_hull(losses):
    widths = torch.randint(1, 6, (len(losses),), generator=torch.Generator().manual_seed(len(losses)))
    tried = widths.cumsum(0).tolist()
    got = _increments(tried, losses)
    assert got.shape == (tried[-1],)
    torch.testing.assert_close(got, _hull(tried, losses), rtol=0, atol=1e-12 * float(losses.abs().max()))
