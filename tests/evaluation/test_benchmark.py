"""Latency comparison on models whose speeds are known."""

import time

import pytest
import torch
from tiny import tiny_model
from torch import nn

from optimum_optin.evaluation.latency import latency_entry
from optimum_optin.timing.side_by_side import LatencyComparison, compare_latency


class _Sleeper(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return (x,)


def test_the_slower_model_is_measured_as_slower():
    result = compare_latency(_Sleeper(0.02), _Sleeper(0.01), {"x": torch.ones(1)}, repeats=3)
    assert result.dense_seconds >= 0.02
    assert result.pruned_seconds >= 0.01
    assert 1.3 < result.speedup < 2.5
    assert "x the speed)" in str(result)


def test_a_slowdown_is_not_called_faster():
    assert str(LatencyComparison(0.1, 0.2, 0.5)) == "100.0 ms -> 200.0 ms (0.50x the speed)"


def test_models_of_different_architectures_are_refused():
    with pytest.raises(ValueError, match="the dense model is 'bert', the pruned one 'vit'"):
        latency_entry(tiny_model(), tiny_model("vit"), tokens=8)
