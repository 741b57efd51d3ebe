"""Budgets of time, kept by cut models on a clock that goes by their shapes."""

import pytest
from tiny import tiny_model, tiny_samples

from optimum_optin import OptinConfig, OptinPruner, PruningReport

WIDE = {"intermediate_size": 256}
FIELDS = {"probes": 8, "search": "ranked", "num_samples": 16}


@pytest.mark.parametrize("helped", [1.0, 0.8, 1.2])
def test_the_cut_model_keeps_the_budget(helped, clock_of, tmp_path):
    """What cuts save together may be less or more than what the timetable adds up."""
    clock = clock_of()
    pruner = OptinPruner(tiny_model("bert", **WIDE), config=OptinConfig(latency=0.7, latency_batch_size=4, **FIELDS))
    scores = pruner.score(tiny_samples(16))
    pruner.plan(scores)  # makes the timetable
    clock.helped = helped
    pruned = pruner.prune(scores=scores, calibration=tiny_samples(16), save_dir=tmp_path)
    took = clock.seconds(pruned) / clock.seconds(pruner.model)
    assert 0.66 < took < 0.722, "within 3 %, and a unit"
    latency = PruningReport.load(tmp_path).latency
    assert latency.pruned_ms / latency.dense_ms == pytest.approx(took)
    assert latency.speedup == pytest.approx(1 / took)
    assert (latency.batch_size, latency.tokens, latency.backend) == (4, pruner.report.tokens, "eager")
    assert "asked latency 0.7" in (tmp_path / "README.md").read_text()


def test_several_budgets_hold_at_once(clock_of):
    clock = clock_of()
    pruner = OptinPruner(tiny_model("bert", **WIDE), config=OptinConfig(latency=0.9, params=0.7, **FIELDS))
    pruned = pruner.prune(tiny_samples(16))
    assert clock.seconds(pruned) / clock.seconds(pruner.model) < 0.9
    assert 0.68 < pruner.report.params_pruned / pruner.report.params_dense <= 0.7


def test_what_cannot_be_kept_is_told(clock_of, caplog):
    clock = clock_of()
    pruner = OptinPruner(tiny_model("bert", **WIDE), config=OptinConfig(latency=0.6, **FIELDS))
    scores = pruner.score(tiny_samples(16))
    plan = pruner.plan(scores)
    assert plan.kept["latency"] == pytest.approx(0.6 * clock.dense, rel=0.02) and "latency: " in str(plan)
    clock.helped = 0.1
    pruner.prune(scores=scores, config=OptinConfig(latency=0.6, compensation="none", **FIELDS))
    assert "% of the dense model's time, more than the 60.0% that was asked for" in caplog.text
    with pytest.raises(
        ValueError, match=r"latency: a budget of 0\.01 .* costs 0\.\d+ of it \([\d.]+ms\): ask for more"
    ):
        pruner.plan(scores, config=OptinConfig(latency=0.01, **FIELDS))
