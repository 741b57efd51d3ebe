"""Plain modules of PyTorch, with an example of their input: found, masked and cut, with nothing written for them."""

import copy

import pytest
import torch
from torch import nn
from toys import (
    Padding,
    Pictures,
    Pooled,
    ScaledConv2d,
    Scales,
    TorchEncoder,
    Transformer,
    perturbed,
    pixels,
    token_ids,
)

from optimum_optin import check_architecture, find_groups, masked
from optimum_optin.editing.surgery import rewrite

LAYERS = {f"layers.{layer}.{role}": size for layer in (0, 1) for role, size in (("heads", 4), ("neurons", 48))}
MODULES = {
    "transformer": (Transformer, token_ids(), LAYERS),
    "nn.TransformerEncoder": (TorchEncoder, token_ids(), LAYERS),
    "nn.TransformerEncoder, norm first": (lambda: TorchEncoder(norm_first=True), token_ids(), LAYERS),
    "convolutions": (Pictures, pixels(), {"model.channels": 8, "model.second_channels": 12}),
    "concatenation": (
        Scales,
        pixels(),
        {
            "layers.0.stream_channels": 8,
            "layers.0.channels": 8,
            "layers.1.channels": 16,
            "model.channels": 6,
            "model.far_channels": 4,
            "model.fuse_channels": 12,
        },
    ),
    "convolutions that pad by themselves": (
        Padding,
        pixels(),
        {
            "layers.0.stream_channels": 8,
            "layers.0.channels": 12,
            "layers.1.stream_channels": 6,
            "layers.1.channels": 14,
        },
    ),
    "perceptron": (
        lambda: nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)),
        {"input": torch.randn(1, 8, generator=torch.Generator().manual_seed(0))},
        {"model.neurons": 12},
    ),
}


@pytest.fixture(scope="module", params=MODULES)
def case(request):
    make, sample, expected = MODULES[request.param]
    return perturbed(make()), sample, expected


def test_all_groups_are_found_and_proved_to_be_cut(case):
    module, sample, expected = case
    proof = check_architecture(module, sample)
    assert {each.group.key: each.group.units for each in proof.groups} == expected
    assert not any(each.cut for each in proof.groups) and proof.largest < proof.rounding


@pytest.mark.parametrize("kept", ["every second", "the least"])
@torch.no_grad()
def test_a_cut_module_computes_what_a_masked_one_does(case, kept):
    module, sample, _ = case
    groups = find_groups(module, sample)
    every = {group.key: torch.arange(group.units) for group in groups}
    masks = {key: units % 2 == 0 for key, units in every.items()}
    if kept == "the least":
        masks = {group.key: every[group.key] < group.least for group in groups}
    whole = module(**sample)
    with masked(module, groups, masks):
        expected = module(**sample)
    cut = copy.deepcopy(module)
    rewrite(cut, groups, masks)
    assert torch.allclose(cut(**sample), expected, atol=1e-5) and not torch.allclose(whole, expected, atol=1e-3)
    assert torch.equal(module(**sample), whole), "which stays as it was"
    assert sum(each.numel() for each in cut.parameters()) < sum(each.numel() for each in module.parameters())


@torch.no_grad()
def test_a_cut_module_is_kept_by_its_weights_and_masks(case, tmp_path):
    module, sample, _ = case
    groups = find_groups(module, sample)
    masks = {group.key: torch.arange(group.units) % 2 == 0 for group in groups}
    cut, again = copy.deepcopy(module), copy.deepcopy(module)
    rewrite(cut, groups, masks)
    torch.save(cut.state_dict(), tmp_path / "weights.pt")
    for parameter in again.parameters():
        parameter.zero_()
    rewrite(again, groups, masks)
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(again(**sample), cut(**sample))


def test_heads_of_pytorchs_attention_are_proved_though_no_module_writes_them():
    proof = check_architecture(perturbed(TorchEncoder()), token_ids())
    heads = [each for each in proof.groups if each.group.role == "heads"]
    assert heads and all(each.proved and not each.group.producers for each in heads)


def test_masking_runs_pytorchs_attention_by_itself_in_training_as_well():
    module = perturbed(TorchEncoder())
    groups = find_groups(module, token_ids())
    ones = {group.key: torch.ones(group.units, requires_grad=True) for group in groups}
    whole = module(**token_ids())
    with masked(module, groups, ones):
        output = module(**token_ids())
    assert torch.allclose(output, whole, atol=1e-5)
    output.square().sum().backward()
    assert all(mask.grad.abs().min() > 0 for mask in ones.values())


def test_what_runs_once_for_each_sample_beside_layers_is_left_whole():
    groups = find_groups(perturbed(Pooled()), token_ids())
    assert {group.key for group in groups} == LAYERS.keys()
    assert "once for each sample" in groups.left_whole["up"]


def test_convolutions_that_work_with_another_weight_than_their_own_are_left_whole():
    """Masks and cuts agree, but rows times the weight are not what these write, which scores and refit go by."""
    proof = check_architecture(perturbed(Padding(ScaledConv2d)), pixels())
    assert len(proof.groups) == 4 and not any(each.cut or each.proved for each in proof.groups)
    assert "blocks.0.up is a ScaledConv2d, whose forward does more" in str(proof)
