"""Budgets of a sweep as they are given, and its points by a report; no model is pruned."""

import re
from types import SimpleNamespace

import numpy
import pytest
import torch

from optimum_optin import OptinConfig
from optimum_optin.sweeping.budgets import Budget, read_budgets, with_budget
from optimum_optin.sweeping.points import SweepPoint, Timing, dense_point, point_of

CONFIG = OptinConfig(flops=0.2, params=0.3, probes=7)


@pytest.mark.parametrize(
    ("given", "fields", "name"),
    [
        (0.5, {"flops": 0.5}, "flops-0.5"),
        (1, {"flops": 1.0}, "flops-1.0"),
        (numpy.float32(0.5), {"flops": 0.5}, "flops-0.5"),
        (torch.tensor(0.25), {"flops": 0.25}, "flops-0.25"),
        ("100 MB", {"memory": "100MB"}, "memory-100MB"),
        ("20ms", {"latency": "20ms"}, "latency-20ms"),
        ("50M", {"params": "50M"}, "params-50M"),
        ({"memory": "1 GB", "flops": 1}, {"flops": 1.0, "memory": "1GB"}, "flops-1.0-memory-1GB"),
    ],
    ids=str,
)
def test_a_budget_sets_fields_in_their_order(given, fields, name):
    (found,) = read_budgets([given], CONFIG)
    assert found.name == name and [*found.fields.items()] == [*fields.items()]
    assert all(isinstance(value, (float, str)) for value in found.fields.values())
    assert found.config == OptinConfig(**{"flops": None, **fields}, probes=7) == with_budget(CONFIG, fields)


def test_budgets_keep_their_order():
    given = (0.9, "50M", {"latency": 0.5})
    assert [each.name for each in read_budgets(given, CONFIG)] == ["flops-0.9", "params-50M", "latency-0.5"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "budgets=[] leaves nothing to prune to"),
        ([0.5, 0.5], "budgets holds 0.5 twice"),
        ([0.5, 0.4, {"flops": 0.5}], "budgets holds {'flops': 0.5} twice"),
        ([1.5], "budgets: flops=1.5 must be a share"),
        ([None], "budgets: flops=None must be a share"),
        (["0.5"], "budgets: '0.5' must be a number with a unit that only one budget has"),
        (["3 parrots"], "budgets: '3 parrots' must be a number with a unit that only one budget has"),
        ([{}], "budgets: {} names none; fields that are budgets are flops, params, memory, latency"),
        ([{"size": 0.5}], "budgets: 'size' is none; fields that are budgets are flops, params, memory, latency"),
        ([{"flops": 0.5, "size": 0.5}], "budgets: 'size' is none"),
        ([{"memory": "20ms"}], "budgets: memory='20ms' must be a share"),
    ],
    ids=str,
)
def test_what_is_no_budget_is_refused(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_budgets(given, CONFIG)


@pytest.mark.parametrize("given", [0.5, "50M", {"flops": 0.5}, {0.5}, None], ids=str)
def test_budgets_are_a_list(given):
    with pytest.raises(TypeError, match=r"budgets must be a list such as \[0\.9, 0\.7, 0\.5\], got "):
        read_budgets(given, CONFIG)


REPORT = SimpleNamespace(
    flops_achieved=0.5,
    macs_pruned=11,
    params_pruned=12,
    bytes_pruned=13,
    macs_dense=21,
    params_dense=22,
    bytes_dense=23,
    layers={"layers.0": {"heads": {"kept": 1, "of": 2}}},
    merges={"layers.0": 3},
    divergence=None,
)
METRICS = {"accuracy": {"value": 0.75, "error": None}}


def _latency(dense, pruned):
    return SimpleNamespace(dense_ms=dense, pruned_ms=pruned, speedup=1.5)


def test_a_point_says_what_the_report_says_of_the_pruned_model():
    of_report = {
        "flops": 0.5,
        "macs": 11,
        "params": 12,
        "bytes": 13,
        "layers": REPORT.layers,
        "merges": {"layers.0": 3},
    }
    expected = {"name": "flops-0.5", "budget": {"flops": 0.5}, "metrics": METRICS, "divergence": None, "folder": None}
    times = {"milliseconds": 4.0, "speedup": 1.5}
    timed = point_of(REPORT, "flops-0.5", {"flops": 0.5}, METRICS, _latency(6.0, 4.0))
    assert timed.to_dict() == {**expected, **of_report, **times}
    untimed = point_of(REPORT, "flops-0.5", {"flops": 0.5}, METRICS, None)
    assert untimed.to_dict() == {**expected, **of_report, **dict.fromkeys(times)}
    assert timed.metrics is not METRICS and timed.to_dict()["metrics"] is not timed.metrics


def test_the_dense_point_is_what_the_report_says_of_the_dense_model():
    layers = {"layers.0": {"heads": {"kept": 2, "of": 2}}}
    times = [_latency(each, 1.0) for each in (8.0, 5.0, 6.0)]
    point = dense_point(REPORT, layers, METRICS, times)
    assert point == SweepPoint("dense", {}, METRICS, 1.0, 21, 22, 23, layers, milliseconds=6.0, speedup=1.0)
    point = dense_point(REPORT, layers, METRICS, [])
    assert (point.milliseconds, point.speedup) == (None, None)
    assert SweepPoint("a", {}, {}, 1.0, 1, 1, 1, {}).merges == {}


def test_a_timing_says_how_models_were_timed():
    timing = Timing("cpu", "Some Chip", 2, "float32", 3, 64, 15)
    assert str(timing) == "3 x 64 tokens, Some Chip, 2 threads, float32, median of 15 runs in turn"


def test_a_budget_is_named_by_its_fields():
    assert Budget({"flops": 0.5, "params": "1M"}, CONFIG).name == "flops-0.5-params-1M"
