"""Small problems of the mask search, and what an answer costs and gains."""

import itertools

import torch


def problem(seed, heads=(3, 2), neurons=(5, 4), head_cost=7.0, neuron_cost=2.0):
    generator = torch.Generator().manual_seed(seed)
    scores, costs = {}, {}
    for layer, (head_count, neuron_count) in enumerate(zip(heads, neurons, strict=True)):
        for role, units, cost in (("heads", head_count, head_cost), ("neurons", neuron_count, neuron_cost)):
            scores[f"layers.{layer}.{role}"] = torch.rand(units, generator=generator)
            costs[f"layers.{layer}.{role}"] = torch.arange(units + 1) * cost
    return scores, costs


def problem_of_roles(seed, roles, layers=2):
    """Groups of 2 to 4 units for each role in each layer; a unit of each role has a cost of its own."""
    generator = torch.Generator().manual_seed(seed)
    scores, costs = {}, {}
    for layer, (place, role) in itertools.product(range(layers), enumerate(roles)):
        units = int(torch.randint(2, 5, (), generator=generator))
        scores[f"layers.{layer}.{role}"] = torch.rand(units, generator=generator)
        costs[f"layers.{layer}.{role}"] = torch.arange(units + 1) * (7.0, 2.0, 3.0, 5.0)[place]
    return scores, costs


def spent(masks, costs):
    return sum(float(costs[key][int(mask.sum())]) for key, mask in masks.items())


def gained(masks, scores):
    return sum(float(scores[key][mask].double().sum()) for key, mask in masks.items())


def steps_of(ranking):
    """The units that each step of a ranking takes, by group and index."""
    taken = [
        {(key, unit) for key, mask in ranking.masks(count).items() for unit in mask.nonzero().flatten().tolist()}
        for count in range(len(ranking) + 1)
    ]
    assert not taken[0] and all(before < after for before, after in itertools.pairwise(taken))
    return [sorted(after - before) for before, after in itertools.pairwise(taken)]
