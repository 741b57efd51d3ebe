"""Ratios of runs that took turns: their bounds hold in as many draws as they say, and noise is called noise."""

import math
import statistics

import pytest
import torch

from optimum_optin.timing.peaks import PeakMeter
from optimum_optin.timing.speedups import FEWEST, quantile, speedup_of


def test_the_bounds_hold_the_median_in_19_of_20_draws():
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(400):
        found = speedup_of([1.0] * 15, torch.rand(15, generator=generator, dtype=torch.float64).exp().tolist())
        assert found.low <= found.median <= found.high
        held += found.low <= torch.tensor(-0.5).exp() <= found.high
    assert 0.93 <= held / 400 <= 0.99, "of 15 draws, those of ranks 4 and 12 hold it in 96.5 % of all"


def test_of_six_runs_the_extremes_are_the_bounds():
    found = speedup_of([2.0] * 6, [1.0, 1.25, 1.0, 0.8, 1.0, 1.0])
    assert (found.low, found.median, found.high) == (1.6, 2.0, 2.5)
    assert found.runs == FEWEST == 6


def test_runs_of_one_turn_are_compared_with_each_other():
    drifting = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    found = speedup_of(drifting, [each / 2 for each in drifting])
    assert (found.low, found.median, found.high, found.spread) == (2.0, 2.0, 2.0, 0.0)
    assert found.noise is None


@pytest.mark.parametrize(
    ("times", "noise"),
    [
        ([1.0] * 5, "5 runs are too few, 6 are needed"),
        ([1.0, 1.05] * 4, None),
        ([1.0, 1.18] * 4, None),
        ([1.0, 1.28] * 4, "known to ± 12% only"),
        ([1.0, 2.0] * 4, "known to ± 33% only"),
        ([*[1.0] * 7, 0.5], "known to ± 100% only"),
        ([*[1.0] * 7, 2.0], "known to ± 50% only"),
    ],
)
def test_what_says_nothing_says_so(times, noise):
    found = speedup_of([1.0] * len(times), times)
    assert found.noise == noise
    assert statistics.median([1 / each for each in times]) == found.median


@pytest.mark.parametrize("runs", [1, 2, 5, 6, 7, 8, 9, 15, 24, 40, 101])
def test_bounds_are_the_narrowest_that_hold_in_95_percent_of_coin_tosses(runs):
    """Against the sum of all chances that so few ratios are below the median, or above it."""
    found = speedup_of([float(each) for each in range(1, runs + 1)], [1.0] * runs)
    below = [2 * sum(math.comb(runs, each) for each in range(rank)) / 2**runs for rank in range(1, runs // 2 + 2)]
    rank = max([1, *(rank for rank, chance in enumerate(below, start=1) if chance <= 0.05)])
    assert (found.low, found.high) == (rank, runs + 1 - rank)
    assert found.spread == pytest.approx((quantile(range(1, runs + 1), 0.75) * 2 / (runs + 1) - 1) * 2)
    assert str(found) == f"{(runs + 1) / 2:.2f}x ({rank:.2f} to {runs + 1 - rank:.2f})"


def test_quantiles_are_those_of_torch():
    values = torch.rand(23, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for share in (0.0, 0.25, 0.5, 0.95, 1.0):
        assert quantile(values.tolist(), share) == pytest.approx(float(values.quantile(share)))


def test_the_peak_is_what_is_held_at_most_above_the_start():
    meter = PeakMeter(torch.device("cpu"))
    if meter.peak(lambda: None) is None:
        pytest.skip("this system does not tell")
    kept = []
    held = meter.peak(lambda: torch.ones(8, 2**20).sum())  # 32 MiB, and let go
    assert 0.9 <= held / 2**25 < 1.5
    assert meter.peak(lambda: None) < 2**24, "a peak of before is none of this run's"
    assert meter.peak(lambda: kept.append(torch.ones(8, 2**20))) > 0.9 * 2**25
    assert meter.peak(lambda: None) > 0.9 * 2**25, "what is still held counts"
