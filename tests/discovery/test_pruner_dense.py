"""Segmenters, detectors and an estimator of depth from end to end: pruned by their outputs, saved, loaded, counted."""

import pytest
import torch
from dense import dense_model, images

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.discovery.find import find_groups
from optimum_optin.inputs.probes import probe_batch
from optimum_optin.pricing.macs import count_macs
from optimum_optin.pricing.unit_costs import unit_macs
from optimum_optin.storage.tasks import maker_of

# Channels of backbones and of decoders stay whole here: they are the matter of other tests.
CONFIG = OptinConfig(flops=0.7, probes=8, rows=16, batch_size=4, include=("*heads", "*neurons"), min_heads=0)
BACKBONES = {"detr": 0.98, "mask2former": 0.8}  # whose channels are most of the budget
HEADS_AND_NEURONS = {
    "segformer": {"heads": 3, "neurons": 3},
    "dinov2": {"heads": 3, "neurons": 3},
    "beit": {"heads": 4, "neurons": 4},
    "mask2former": {"heads": 7, "neurons": 7},
    "eomt": {"heads": 2, "neurons": 4},
    "detr": {"heads": 4, "encoder_attn_heads": 2, "neurons": 5, "layers_neurons": 1},  # one of the boxes' perceptron
    "yolos": {"heads": 3, "neurons": 5, "layers_neurons": 2},  # two perceptrons
}


@pytest.fixture(scope="module")
def pruners():
    """Pruners that have pruned, made once for each model."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = OptinPruner(dense_model(name))
            data = [{"pixel_values": image} for image in images(16)]
            made[name].prune(data, OptinConfig(**{**CONFIG.to_dict(), "flops": BACKBONES.get(name, CONFIG.flops)}))
        return made[name]

    return of


@pytest.mark.parametrize("name", HEADS_AND_NEURONS)
def test_heads_and_neurons_of_all_stacks_are_scored(name, pruners):
    found = {}
    for roles in pruners(name).report.layers.values():
        for role in roles:
            found[role] = found.get(role, 0) + 1
    assert {role: count for role, count in found.items() if "channels" not in role} == HEADS_AND_NEURONS[name]


def test_heads_whose_number_the_class_fixes_are_left_whole(pruners):
    """Mask2Former's self-attention reshapes to the hidden width."""
    reasons = find_groups(pruners("mask2former").model).left_whole.values()
    assert any("it does not run (RuntimeError: shape '[" in each for each in reasons)


@pytest.mark.parametrize("name", HEADS_AND_NEURONS)
def test_outputs_of_a_head_are_compared(name, pruners):
    divergence = pruners(name).report.divergence
    assert divergence.distance > 0
    assert divergence.agreement is None or divergence.agreement > 0.5
    if name not in ("detr", "yolos"):  # which may see nothing at random
        assert divergence.agreement is not None


@pytest.mark.parametrize("name", HEADS_AND_NEURONS)
def test_saved_models_load_with_their_auto_class(name, pruners, tmp_path):
    pruner = pruners(name)
    pruner.save_pretrained(tmp_path)
    loaded = maker_of(pruner.model).from_pretrained(tmp_path).eval()
    assert type(loaded) is type(pruner.model)
    with torch.no_grad():
        found, expected = loaded(images(2, seed=3)), pruner.pruned_model(images(2, seed=3))
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", HEADS_AND_NEURONS)
def test_what_is_counted_is_what_is_saved(name, pruners):
    """MACs of the units that went, as the search counts them, against PyTorch's counter on both whole models."""
    pruner = pruners(name)
    batch = probe_batch(pruner.model, pruner.report.tokens)
    groups = [group for group in find_groups(pruner.model) if group.layer in pruner.report.layers]
    kept = pruner.report.layers
    groups = [group for group in groups if group.role in kept[group.layer]]
    macs = unit_macs(pruner.model, find_groups(pruner.model), batch)
    gone = sum(macs[group.key] * (group.units - kept[group.layer][group.role]["kept"]) for group in groups)
    assert count_macs(pruner.model, batch) - count_macs(pruner.pruned_model, batch) == gone


OTHERS = [(name, scorer) for name in ("segformer", "eomt", "yolos") for scorer in ("gauss_newton", "exact")]


@pytest.mark.parametrize(("name", "scorer"), [*OTHERS, ("mask2former", "gauss_newton")])
def test_other_scorers_score_by_the_output(name, scorer, pruners):
    pruner = pruners(name)
    data = [{"pixel_values": image} for image in images(4)]
    scores = pruner.score(data, OptinConfig(**{**CONFIG.to_dict(), "scorer": scorer, "num_samples": 4}))
    output = torch.cat(list(scores.terms["output"].values()))
    assert (output >= 0).all() and float(output.sum()) > 0


def test_layers_that_run_in_vain_cost_nothing(pruners):
    """BEiT's segmentation reads what its last layer is called with, and not what that returns."""
    pruner = pruners("beit")
    scores = pruner.score([{"pixel_values": image} for image in images(8)], CONFIG)
    for role in ("heads", "neurons"):
        used, idle = (scores.terms["output"][f"layers.{layer}.{role}"].max() for layer in (2, 3))
        assert idle < 1e-100
        assert used > 1e-20
