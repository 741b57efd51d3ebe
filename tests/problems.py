"""Small problems of the mask search, and what an answer costs and gains."""

import torch


def problem(seed, heads=(3, 2), neurons=(5, 4), head_cost=7.0, neuron_cost=2.0):
    generator = torch.Generator().manual_seed(seed)
    scores, costs = {}, {}
    for layer, (head_count, neuron_count) in enumerate(zip(heads, neurons, strict=True)):
        for role, units, cost in (("heads", head_count, head_cost), ("neurons", neuron_count, neuron_cost)):
            scores[f"layers.{layer}.{role}"] = torch.rand(units, generator=generator)
            costs[f"layers.{layer}.{role}"] = torch.arange(units + 1) * cost
    return scores, costs


def spent(masks, costs):
    return sum(float(costs[key][int(mask.sum())]) for key, mask in masks.items())


def gained(masks, scores):
    return sum(float(scores[key][mask].double().sum()) for key, mask in masks.items())
