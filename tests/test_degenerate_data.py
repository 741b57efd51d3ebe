"""Calibration data and weights that say little: constant inputs, far offsets, outputs that never change."""

import pytest
import torch
from tiny import tiny_model, tiny_samples
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.scoring import scores as scoring

CONFIG = OptinConfig(flops=0.5, probes=8)
DATA = {
    "empty texts": ("bert", [""] * 32),
    "one text": ("bert", TEXTS[:1] * 32),
    "one token": ("bert", [{"input_ids": [7]}] * 32),
    "empty texts, pre-norm": ("modernbert", [""] * 32),
    "black images": ("vit", [{"pixel_values": torch.zeros(3, 16, 16)}] * 32),
    "white images in windows": ("swin", [{"pixel_values": torch.ones(3, 16, 16)}] * 32),
}


@pytest.mark.parametrize("scorer", ["surgeon", "gauss_newton"])
@pytest.mark.parametrize("name", DATA)
def test_data_that_never_change_serve(name, scorer):
    model_type, data = DATA[name]
    pruner = OptinPruner(tiny_model(model_type), word_tokenizer())
    pruned = pruner.prune(data, OptinConfig(flops=0.5, probes=8, scorer=scorer))
    assert 0.4 < pruner.report.flops_achieved <= 0.5
    assert all(parameter.isfinite().all() for parameter in pruned.parameters())
    assert pruner.report.divergence["distance"] < 1e-2  # all that was seen can be taken over by a bias


def _with_offset(offset):
    """A model whose first FFN reads activations far from 0, and takes that off again."""
    model = tiny_model().double()
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        consumer = layer.output.dense
        layer.intermediate.dense.bias += offset
        consumer.bias -= consumer.weight.sum(1) * offset
    return model


def test_an_offset_costs_the_surgeon_no_digits():
    """Beyond 30, GELU is the identity, so that a further offset changes nothing but the inputs' mean."""
    near, far = (OptinPruner(_with_offset(offset)).score(tiny_samples(), CONFIG) for offset in (30.0, 3e4))
    for term in near.terms:
        one, other = (scores.terms[term]["layers.0.neurons"] for scores in (near, far))
        torch.testing.assert_close(one, other, rtol=0.02, atol=0)


def test_an_offset_costs_the_refit_no_digits():
    distances = []
    for offset in (30.0, 3e4):
        pruner = OptinPruner(_with_offset(offset).float())
        pruner.prune(tiny_samples(64), OptinConfig(flops=0.6, probes=8, scorer="gauss_newton", search="ranked"))
        distances.append(pruner.report.divergence["distance"])
    assert distances[1] == pytest.approx(distances[0], rel=0.5)


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_a_stream_with_an_offset_serves(offset):
    model = tiny_model()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.output.LayerNorm.bias += offset
    pruned = OptinPruner(model).prune(tiny_samples(), CONFIG)
    assert all(parameter.isfinite().all() for parameter in pruned.parameters())


@pytest.mark.parametrize("scorer", ["surgeon", "gauss_newton", "exact"])
@pytest.mark.parametrize("num_labels", [1, 3], ids=["regression", "classes"])
def test_a_classifier_of_zeros_leaves_the_trajectory_to_decide(scorer, num_labels):
    model = tiny_model(num_labels=num_labels)
    with torch.no_grad():
        model.classifier.weight.zero_()
    pruner = OptinPruner(model)
    config = OptinConfig(flops=0.5, probes=8, scorer=scorer)
    scores = pruner.score(tiny_samples(8), config)
    combined = scores.combine()
    assert all(score.isfinite().all() for score in combined.values())
    total = sum(float(score.sum()) for score in scores.terms["trajectory"].values())
    for key, score in scores.terms["trajectory"].items():
        torch.testing.assert_close(combined[key], score / total, rtol=1e-6, atol=1e-12)
    pruned = pruner.prune(scores=scores)
    assert 0.4 < pruner.report.flops_achieved <= 0.5
    assert all(group.units for group in find_groups(pruned) if group.role == "heads")


def test_the_agreement_of_numbers_does_not_depend_on_their_offset():
    agreements = []
    for offset in (0.0, 3e4):
        model = tiny_model(num_labels=1)
        with torch.no_grad():
            model.classifier.bias += offset
        pruner = OptinPruner(model)
        pruner.prune(tiny_samples(64), OptinConfig(flops=0.5, probes=8, compensation="none", search="ranked"))
        agreements.append(pruner.report.divergence["agreement"])
    assert agreements[1] == pytest.approx(agreements[0], abs=0.02)


def test_activations_too_large_for_float32_are_named():
    model = tiny_model("vit")
    layer = model.vit.layers[1]
    with torch.no_grad():
        layer.mlp.fc1.weight *= 1e25
        layer.mlp.fc2.weight *= 1e-25
    with pytest.raises(ValueError, match=r"layers\.1\.neurons cannot be scored: sums of its activations are not"):
        OptinPruner(model).score(tiny_samples(8, model=model), CONFIG)


def test_gradients_that_are_not_finite_are_named():
    model = tiny_model()
    with torch.no_grad():  # attention scores of 1e10, of which PyTorch's fused attention gives NaN as gradients
        for layer in model.bert.encoder.layer:
            layer.output.LayerNorm.bias += 1e5
    with pytest.raises(ValueError, match=r"layers\.0\.heads cannot be scored: gradients at its output are not finite"):
        OptinPruner(model).score(tiny_samples(8), CONFIG)


def test_a_scorer_in_float32_may_score_a_term_zero():
    terms = {"output": {"layers.0.heads": torch.zeros(4)}, "trajectory": {"layers.0.heads": torch.ones(4)}}
    scores = scoring.Scores(terms, CONFIG, "", 8, 0.0)
    assert scores.combine()["layers.0.heads"].tolist() == [0.25] * 4
