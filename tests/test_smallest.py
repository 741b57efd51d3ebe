"""`prune(max_drop=...)` against all budgets, and what it refuses."""

import json
import math

import pytest
import torch
from language_models import language_model
from tiny import tiny_model, tiny_samples

from optimum_optin import OptinConfig, OptinPruner, PruningReport
from optimum_optin.smallest import TRIALS
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
