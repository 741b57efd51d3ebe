"""Divergence against direct formulas, and the search that measures it."""

import dataclasses

import pytest
import torch
from tiny import random_masks, tiny_batch, tiny_model, tiny_samples
from transformers import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertModel,
)

from optimum_optin import OptinConfig, OptinPruner, PruningReport, find_groups
from optimum_optin.editing.masking import masked
from optimum_optin.editing.surgery import rewrite
from optimum_optin.merging.schedule import TokenSchedule
from optimum_optin.passes.calibration import calibrate, dense_passes
from optimum_optin.pipeline import split_of
from optimum_optin.search.candidates import Choice
from optimum_optin.search.divergence import Divergence, measure_divergence
from optimum_optin.search.trials import _WEIGHTS, Trials

CONFIG = OptinConfig(flops=0.4, probes=8)


def _pair(model_type="bert", head=True):
    dense, pruned = tiny_model(model_type), tiny_model(model_type)
    masks = random_masks(find_groups(pruned), share=0.5)
    rewrite(pruned, find_groups(pruned), masks)
    return (dense, pruned, masks) if head else (dense.base_model, pruned.base_model, masks)


@torch.no_grad()
def test_a_classifier_diverges_by_kl_and_agrees_by_class():
    dense, pruned, _ = _pair()
    batches = [tiny_batch(dense, seed=seed) for seed in range(2)]
    teacher, student = (torch.cat([model(**batch).logits for batch in batches]) for model in (dense, pruned))
    (got,) = measure_divergence(dense, [pruned], find_groups(dense), calibrate(dense, batches))
    kl = torch.nn.functional.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
    assert got.distance == pytest.approx(float(kl), rel=1e-4)
    assert got.agreement == pytest.approx(float((student.argmax(-1) == teacher.argmax(-1)).float().mean()))
    assert got.samples == len(teacher)


@torch.no_grad()
def test_without_a_head_hidden_states_are_compared_padding_excluded():
    dense, pruned, _ = _pair(head=False)
    batch = tiny_batch(dense)
    valid = batch["attention_mask"].bool()
    teacher, student = (model(**batch).last_hidden_state[valid] for model in (dense, pruned))
    explained = 1 - (student - teacher).square().sum() / (teacher - teacher.mean(0)).square().sum()
    (got,) = measure_divergence(dense, [pruned], find_groups(dense), calibrate(dense, [batch]))
    assert got.distance == pytest.approx(float((student - teacher).square().sum(-1).mean()), rel=1e-4)
    assert got.agreement == pytest.approx(max(0.0, float(explained)), rel=1e-4)


def test_the_same_model_does_not_diverge():
    for model in (tiny_model(), tiny_model().base_model, tiny_model(problem_type="regression", num_labels=1)):
        (got,) = measure_divergence(model, [model], find_groups(model), calibrate(model, [tiny_batch(model)]))
        assert (got.distance, got.agreement) == pytest.approx((0, 1), abs=1e-6)


def test_the_least_divergent_candidate_wins():
    dense, _, masks = _pair()
    groups = find_groups(dense)
    mild = {key: torch.ones_like(mask) for key, mask in masks.items()}
    mild["layers.2.neurons"][0] = False
    calibration = calibrate(dense, [tiny_batch(dense, seed=seed) for seed in range(3)])
    for candidates in ([masks, mild], [mild, masks]):
        for starts in (dense_passes(dense, groups, calibration, CONFIG), []):
            choices = [Choice(each, 1.0) for each in candidates]
            assert Trials(dense, groups, starts, calibration).best(choices).masks is mild


def test_the_least_divergent_schedule_wins():
    dense = tiny_model("vit")
    groups = find_groups(dense)
    masks = {group.key: torch.ones(group.units, dtype=torch.bool) for group in groups}
    calibration = calibrate(dense, [tiny_batch(dense, seed=seed) for seed in range(3)])
    mild, wild = (Choice(masks, 1.0, schedule=TokenSchedule(1, {"layers.1": pairs})) for pairs in (1, 8))
    for choices in ([wild, mild], [mild, wild]):
        assert Trials(dense, groups, [], calibration).best(choices) is mild
    assert not dense.vit.layers[1]._forward_hooks


@pytest.mark.parametrize("compensation", ["ridge", "none"])
def test_measured_search_keeps_one_of_the_ranked_cuts(compensation):
    config = dataclasses.replace(CONFIG, compensation=compensation)
    pruner = OptinPruner(tiny_model())
    samples = tiny_samples(160)
    scores = pruner.score(samples, config)
    pruner.prune(scores=scores, config=config)
    chosen = pruner.report.output_weight
    assert chosen in [config.output_weight * factor for factor in _WEIGHTS]
    other = OptinPruner(pruner.model)
    other.prune(scores=scores, config=dataclasses.replace(config, search="ranked", output_weight=chosen))
    assert other.report.output_weight == chosen
    assert other.report.layers == pruner.report.layers


def test_the_search_takes_the_cut_that_the_trials_found(monkeypatch):
    tried = []

    def last(trials, choices):
        tried.append(choices)
        return choices[-1]

    monkeypatch.setattr(Trials, "best", last)
    pruner = OptinPruner(tiny_model())
    pruner.prune(tiny_samples(64), CONFIG)
    assert [len(choices) for choices in tried] == [1, len(_WEIGHTS)]
    assert pruner.report.output_weight == CONFIG.output_weight * _WEIGHTS[-1]
    kept = {key: int(mask.sum()) for key, mask in tried[-1][-1].masks.items()}
    assert kept == {
        f"{layer}.{role}": counts["kept"]
        for layer, roles in pruner.report.layers.items()
        for role, counts in roles.items()
    }


def test_no_cut_is_tried_twice(monkeypatch):
    dense, _, masks = _pair()
    batches = [tiny_batch(dense)]
    trials, tried = Trials(dense, find_groups(dense), [], calibrate(dense, batches)), []
    divergences = trials._divergences
    monkeypatch.setattr(trials, "_divergences", lambda choices: tried.extend(choices) or divergences(choices))
    whole = {key: torch.ones_like(mask) for key, mask in masks.items()}
    half, same, full = Choice(masks, 1.0), Choice(masks, 2.0), Choice(whole, 1.0)
    assert trials.best([half, same]) is half
    assert tried == []
    assert trials.best([same, half, full]) is full
    assert trials.best([half, full]) is full
    assert tried == [same, full]


def test_without_a_head_there_are_no_trials(monkeypatch):
    monkeypatch.setattr(Trials, "best", None)
    pruner = OptinPruner(tiny_model(base=True))
    pruner.prune(tiny_samples(64), CONFIG)
    assert pruner.report.output_weight == CONFIG.output_weight


def test_a_cut_that_overflows_loses(monkeypatch):
    found = [Divergence(distance, None, 1, True) for distance in (float("nan"), 0.2, 0.1)]
    monkeypatch.setattr("optimum_optin.search.trials.measure_divergence", lambda *_: found)
    dense, _, masks = _pair()
    others = [{key: mask.roll(shift, 0) for key, mask in masks.items()} for shift in range(3)]
    choices = [Choice(each, 1.0) for each in others]
    assert Trials(dense, find_groups(dense), [], []).best(choices) is choices[2]


@pytest.mark.parametrize("count", [2, 7, 64])
def test_divergence_is_measured_on_batches_that_the_refit_does_not_see(count):
    batches = range(count)
    fit, held_out = split_of(count)
    assert fit
    assert held_out
    assert not set(fit) & set(held_out)
    assert set(fit) | set(held_out) == set(batches)


def test_a_single_batch_is_not_called_held_out():
    assert split_of(1) == ([0], [0])
    pruner = OptinPruner(tiny_model())
    pruner.prune(tiny_samples(8), CONFIG)
    assert pruner.report.divergence["held_out"] is False
    assert "8 calibration samples" in str(pruner.report)
    pruner.prune(tiny_samples(16), CONFIG)
    assert pruner.report.divergence["held_out"] is True


def test_one_number_has_no_variance_to_explain():
    model = tiny_model(num_labels=1)
    batch = {name: value[:1] for name, value in tiny_batch(model).items()}
    (got,) = measure_divergence(model, [model], find_groups(model), calibrate(model, [batch]))
    assert got.agreement is None


@pytest.mark.parametrize(
    "model_class",
    [BertForQuestionAnswering, BertForTokenClassification, BertForMaskedLM, BertForPreTraining, BertModel],
)
def test_every_kind_of_head_goes_the_whole_road(model_class):
    pruner = OptinPruner(tiny_model(model_class=model_class, num_labels=2))
    pruner.prune(tiny_samples(40), CONFIG)
    assert pruner.report.divergence["distance"] > 0
    assert 0 <= pruner.report.divergence["agreement"] <= 1


def test_a_collapse_is_announced_and_reported(caplog, tmp_path):
    pruner = OptinPruner(tiny_model())
    pruner.prune(tiny_samples(200), dataclasses.replace(CONFIG, flops=0.9))
    assert "expect a large loss" not in caplog.text
    kept = pruner.report.divergence
    with torch.no_grad():
        for layer in pruner.model.bert.encoder.layer:
            layer.output.dense.weight.mul_(20)
    config = dataclasses.replace(CONFIG, flops=0.1, min_heads=0, compensation="none")
    pruner = OptinPruner(pruner.model)
    pruner.prune(tiny_samples(200), config, save_dir=tmp_path)
    assert "samples: expect a large loss" in caplog.text
    assert pruner.report.divergence["agreement"] < 0.75 < kept["agreement"]
    assert PruningReport.load(tmp_path).divergence == pruner.report.divergence
    assert "outputs against the dense model's" in str(pruner.report)


@torch.no_grad()
def test_a_plan_predicts_what_removing_one_unit_costs():
    """Of one unit alone the second order is the truth, nearly: measured on the masked model."""
    config = dataclasses.replace(CONFIG, scorer="gauss_newton", probes=500, num_samples=8)
    pruner = OptinPruner(tiny_model())
    samples = tiny_samples(8)
    scores = pruner.score(samples, config)
    groups = {group.key: group for group in find_groups(pruner.model)}
    group = groups["layers.2.neurons"]
    mask = torch.ones(group.units)
    mask[scores.terms["output"][group.key].argmax()] = 0
    masks = {key: torch.ones(each.units) for key, each in groups.items()} | {group.key: mask}
    (batch,) = scores.calibration
    teacher = pruner.model(**batch).logits.log_softmax(-1)
    with masked(pruner.model, [group], {group.key: mask}):
        student = pruner.model(**batch).logits.log_softmax(-1)
    divergence = float((teacher.exp() * (teacher - student)).sum(-1).mean())
    assert scores.removed(masks)["output"] == pytest.approx(divergence, rel=0.3)


def test_a_plan_predicts_more_loss_for_a_smaller_budget():
    pruner = OptinPruner(tiny_model())
    scores = pruner.score(tiny_samples(64), CONFIG)
    predicted = [pruner.plan(scores, flops=flops).predicted["output"] for flops in (0.8, 0.5, 0.2)]
    assert predicted == sorted(predicted)
    assert "predicted divergence" in str(pruner.plan(scores))


@torch.no_grad()
def test_token_level_logits_count_every_real_token():
    dense = tiny_model(model_class=BertForMaskedLM)
    pruned = tiny_model(model_class=BertForMaskedLM)
    rewrite(pruned, find_groups(pruned), random_masks(find_groups(pruned), share=0.7))
    batch = tiny_batch(dense)
    valid = batch["attention_mask"].bool()
    teacher, student = (model(**batch).logits[valid] for model in (dense, pruned))
    kl = torch.nn.functional.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
    (got,) = measure_divergence(dense, [pruned], find_groups(dense), calibrate(dense, [batch]))
    assert got.distance == pytest.approx(float(kl), rel=1e-4)
    assert got.agreement == pytest.approx(float((student.argmax(-1) == teacher.argmax(-1)).float().mean()))
