"""Parameters and bytes that masks leave, against models that were cut."""

import copy

import pytest
import torch
from decoders import generator
from expert_models import expert_model
from tiny import random_masks, tiny_model
from torch import nn
from toys import Bottlenecks, Pictures, perturbed, pixels

from optimum_optin import OptinPruner, find_groups
from optimum_optin.editing.surgery import rewrite
from optimum_optin.pricing.tensors import (
    bytes_by_name,
    count_bytes,
    count_parameters,
    parameters_by_name,
    tensor_tables,
)

MODELS = {
    "bert": tiny_model,
    "swin": lambda: tiny_model("swin"),
    "llama": lambda: generator("llama"),  # keys and values of several queries
    "gpt2": lambda: generator("gpt2"),  # packed, and tied
    "mixtral": lambda: expert_model("mixtral"),
    "convolutions": lambda: OptinPruner.from_model(perturbed(Pictures()), pixels()).model,
    "stream": lambda: OptinPruner.from_model(perturbed(Bottlenecks()), pixels()).model,
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_left_is_what_the_cut_model_has(name):
    model = MODELS[name]()
    groups = find_groups(model)
    next(model.parameters()).data = next(model.parameters()).data.double()  # of twice as many bytes
    for seed in range(2):
        masks = {
            group.key: mask.view(group.parts, -1)[0].repeat(group.parts)  # equally many of each expert
            for group, mask in zip(groups, random_masks(groups, seed).values(), strict=True)
        }
        cut = copy.deepcopy(model)
        rewrite(cut, groups, masks)
        for count, by_name in ((count_parameters, parameters_by_name), (count_bytes, bytes_by_name)):
            tables, left = tensor_tables(model, groups, by_name(model))
            assert left({key: torch.ones_like(mask) for key, mask in masks.items()}) == pytest.approx(count(model))
            assert {key: len(table) for key, table in tables.items()} == {each.key: each.units + 1 for each in groups}
            assert left(masks) == pytest.approx(count(cut)), count.__name__
    group = groups[0]
    fewer = {**{key: torch.ones_like(mask) for key, mask in masks.items()}, group.key: group.first(group.units // 2)}
    gone = group.units - int(fewer[group.key].sum())
    assert left(fewer) == pytest.approx(count(model) - gone * float(tables[group.key][1]))


def test_what_is_shared_counts_once_and_what_is_not_saved_never():
    """By hand: a tied weight, a buffer, and one that no file holds."""
    model = nn.Module()
    model.first, model.second = nn.Linear(3, 4), nn.Linear(3, 4, dtype=torch.float64)
    model.third = nn.Linear(3, 4, bias=False)
    model.third.weight = model.first.weight
    model.register_buffer("kept", torch.zeros(5, dtype=torch.int16))
    model.register_buffer("passing", torch.zeros(7), persistent=False)
    linears = {"first.weight": 12, "first.bias": 4, "second.weight": 12, "second.bias": 4}
    assert parameters_by_name(model) == linears
    assert count_parameters(model) == 32
    sizes = {name: number * (4 if "first" in name else 8) for name, number in linears.items()}
    assert bytes_by_name(model) == {**sizes, "kept": 10}
    assert count_bytes(model) == 64 + 128 + 10
