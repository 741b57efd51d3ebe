"""Parameters and bytes that masks leave, against models that were cut."""

import copy

import pytest
import torch
from decoders import generator
from expert_models import expert_model
from tiny import random_masks, tiny_model
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
            assert left(masks) == pytest.approx(count(cut)), count.__name__
    group = groups[0]
    fewer = {**{key: torch.ones_like(mask) for key, mask in masks.items()}, group.key: group.first(group.units // 2)}
    gone = group.units - int(fewer[group.key].sum())
    assert left(fewer) == pytest.approx(count(model) - gone * float(tables[group.key][1]))
