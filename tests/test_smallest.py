"""`prune(max_drop=...)` against all budgets, and what it refuses."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from language_models import language_model
from tiny import tiny_model, tiny_samples

from optimum_optin import OptinConfig, OptinPruner, PruningReport, smallest
from optimum_optin.smallest import TRIALS, Allowance, prune_within, without_budget
from optimum_optin.text_tasks import held_out_perplexity

CONFIG = OptinConfig(probes=8, search="ranked")


def _neurons(model):
    """How many neurons there are."""
    return float(sum(len(layer.intermediate.dense.weight) for layer in model.bert.encoder.layer))


@pytest.mark.parametrize("most", [10, 45])
def test_the_smallest_budget_that_meets_it_is_found_by_halving(most):
    pruner = OptinPruner(tiny_model())
    scores = pruner.score(tiny_samples(16), CONFIG)
    pruned = pruner.prune(scores=scores, max_drop=most, metric=_neurons)
    dense, drops = _neurons(pruner.model), pruner.report.drops
    assert (drops.metric, drops.most) == ("_neurons", most)
    assert len(drops.tried) == TRIALS
    assert dense - _neurons(pruned) <= most
    for tried in drops.tried:  # what each budget loses is what a pruning to it loses
        assert dense - _neurons(pruner.prune(scores=scores, flops=tried.flops)) == tried.drop
    taken = min(tried.flops for tried in drops.tried if tried.drop <= most)
    missed = max((tried.flops for tried in drops.tried if tried.drop > most), default=0)
    assert missed < taken <= missed + 1 / 2**TRIALS + 1e-9


def test_the_report_has_the_budget_that_was_taken_and_what_was_tried(tmp_path):
    pruner = OptinPruner(tiny_model())
    pruner.prune(tiny_samples(64), CONFIG, max_drop=0.3, save_dir=tmp_path)
    report = PruningReport.load(tmp_path)
    assert report.drops.metric == "agreement"
    assert report.flops_requested == report.config["flops"]
    taken = next(each for each in report.drops.tried if each.flops == report.flops_requested)
    assert taken.drop == pytest.approx(1 - report.divergence.agreement)
    assert f"{taken.flops:.1%}" in str(report)
    assert json.loads((tmp_path / "optin_report.json").read_text())["drops"]["most"] == 0.3
    again = OptinPruner(pruner.model)
    again.prune(tiny_samples(64), OptinConfig(**{**report.config, "flops": report.flops_requested}))
    assert again.report.layers == report.layers
    assert again.report.drops is None


def test_perplexity_rises_by_no_more_than_the_share():
    model = language_model()
    samples = [{"input_ids": torch.randint(5, 27, (16,)).tolist()} for _ in range(32)]
    pruner = OptinPruner(model)
    pruner.prune(samples, CONFIG, max_drop=0.01, metric="perplexity")
    assert pruner.report.drops.metric == "perplexity"
    assert min(each.drop for each in pruner.report.drops.tried) <= 0.01


@torch.no_grad()
def test_perplexity_of_held_out_samples_is_that_of_transformers():
    model = language_model()
    ids = torch.randint(5, 27, (3, 12))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    losses = [
        model(input_ids=row[None, :length], labels=row[None, :length]).loss * (length - 1)
        for row, length in zip(ids, mask.sum(1).tolist(), strict=True)
    ]
    expected = math.exp(float(sum(losses)) / float((mask.sum(1) - 1).sum()))
    got = held_out_perplexity(model, [{"input_ids": ids, "attention_mask": mask}])
    assert got == pytest.approx(expected, rel=1e-5)


def test_a_function_needs_no_calibration_data():
    pruner = OptinPruner(tiny_model())
    scores = pruner.score(tiny_samples(16), CONFIG)
    config = OptinConfig(probes=8, compensation="none")
    fresh = type(scores)(scores.terms, scores.config, scores.fingerprint, scores.tokens, scores.seconds)
    pruner.prune(scores=fresh, config=config, max_drop=20, metric=_neurons)
    assert pruner.report.drops.metric == "_neurons"
    with pytest.raises(ValueError, match="metric='agreement' is measured on calibration data"):
        pruner.prune(scores=fresh, config=config, max_drop=0.1)


def test_what_no_budget_meets_names_the_best():
    pruner = OptinPruner(tiny_model())
    with pytest.raises(ValueError, match=r"max_drop=0\.02 is met by no budget.*drops by 1 at flops=0\.\d+"):
        pruner.prune(tiny_samples(16), CONFIG, max_drop=0.02, metric=lambda model: float(model is pruner.model))
    assert pruner.pruned_model is None
    with pytest.raises(ValueError, match="of the dense model is nan"):
        pruner.prune(tiny_samples(16), CONFIG, max_drop=0.02, metric=lambda model: math.nan)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_drop": 0.1, "flops": 0.5}, "both say how small"),
        ({"metric": "agreement"}, "give that as well"),
        ({"max_drop": -1}, "must be a number of at least 0"),
        ({"max_drop": True}, "must be a number of at least 0"),
        ({"max_drop": math.inf}, "must be a number of at least 0"),
        ({"max_drop": 0.1, "metric": "accuracy"}, "must be a function of a model, or one of agreement, divergence"),
        ({"max_drop": 0.1, "metric": "perplexity"}, "is for models that predict the next token, and BertFor"),
    ],
)
def test_what_makes_no_sense_is_refused_before_scoring(given, message, monkeypatch):
    monkeypatch.setattr("optimum_optin.pruner.score", None)
    with pytest.raises(ValueError, match=message):
        OptinPruner(tiny_model()).prune(tiny_samples(16), CONFIG, **given)


class _Yardstick:
    def __init__(self, losses):
        self.losses = losses

    def measure(self, model, divergence):
        assert divergence == "divergence"
        return model

    def drop(self, flops):
        return self.losses(flops)


@pytest.fixture
def bisected(monkeypatch):
    """Run `prune_within` where a model cut to a share of the MACs loses what a function says; nothing is cut."""

    def run(losses, most, *, least=0.2, config=CONFIG):
        monkeypatch.setattr(smallest, "yardstick_of", lambda *_: _Yardstick(losses))
        monkeypatch.setattr(smallest, "fixed_schedule", lambda model, groups, config, tokens: ("schedule", tokens))

        def least_budget(model, groups, tokens, config, schedule):
            assert (tokens, schedule) == (9, ("schedule", 9))
            return least

        monkeypatch.setattr(smallest, "least_budget", least_budget)
        monkeypatch.setattr(
            smallest, "prune_model", lambda *given: SimpleNamespace(model=given[-1].flops, divergence="divergence")
        )
        scores = SimpleNamespace(tokens=9)
        return prune_within("model", "groups", scores, None, config, allowed=Allowance(most))

    return run


@pytest.mark.parametrize("edge", [0.21, 0.3, 0.5, 0.6, 0.61, 0.9, 0.98])
def test_six_budgets_halve_what_is_left_between_the_least_and_all(bisected, edge):
    """Losses that fall as more is kept, and are what is allowed at an edge."""
    pruned, config, drops = bisected(lambda flops: 1 - flops, 1 - edge)
    low, high, expected = 0.2, 1.0, []
    for _ in range(6):
        expected.append((low + high) / 2)
        low, high = (low, expected[-1]) if 1 - expected[-1] <= 1 - edge else (expected[-1], high)
    assert [each.flops for each in drops.tried] == expected
    assert [each.drop for each in drops.tried] == [1 - flops for flops in expected]
    assert pruned.model == config.flops == high == min(flops for flops in expected if 1 - flops <= 1 - edge)
    assert (drops.metric, drops.most) == ("agreement", 1 - edge)
    assert config == dataclasses.replace(CONFIG, flops=high)


def test_where_nothing_loses_so_little_the_least_loss_is_named(bisected):
    with pytest.raises(ValueError, match=r"max_drop=0\.1 .*: agreement drops by 0\.5125 at flops=0\.9875, which loses"):
        bisected(lambda flops: 1.5 - flops, 0.1)
    with pytest.raises(ValueError, match=r"drops by 0\.6 at flops=0\.6000, which loses least"):
        bisected(lambda flops: flops, 0.1)


@pytest.mark.parametrize("none", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_refused(bisected, none):
    with pytest.raises(ValueError, match=r"agreement of the model pruned to flops=0\.6 is no finite number"):
        bisected(lambda flops: none, 0.1)


def test_a_configuration_without_a_budget_keeps_everything():
    config = without_budget(OptinConfig(params=0.5, memory=0.4, probes=3))
    assert config == OptinConfig(flops=1.0, probes=3) and config.params is config.memory is config.latency is None
