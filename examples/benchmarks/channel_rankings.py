"""Rankings of a convolutional network's channels by others: at random, L1 norms, and `torch-pruning`'s importances.

A ranking takes the model, its groups, train images with labels and a generator, and returns an importance for every
unit, and whether every group is to keep the same share of its units or all compete.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from optimum_optin.architectures.group import Group, Groups, Masks

BATCH = 100  # images in a backward pass

Importances = Mapping[str, Tensor]
"""Group key -> one number for each unit."""
Images = tuple[Tensor, Tensor]
"""Pixel values, shape (images, 3, height, width), and labels, shape (images,)."""
Ranking = Callable[[nn.Module, Groups, Images, torch.Generator], tuple[Importances, bool]]


def masks_within(budget: float, importances: Importances, everywhere: bool, cost_of: Callable[[Masks], float]) -> Masks:
    """The most units whose cost is within a share of the dense one's.

    Args:
        budget: the share.
        importances: of all units.
        everywhere: whether every group keeps the same share of its units, or all compete.
        cost_of: the cost of masks.
    """
    ranks = dict(importances)
    if everywhere:
        shift = 1 / len(importances)  # groups of one size lose a unit in turn, so that a budget is met closely
        ranks = {
            key: (each.argsort().argsort().double() + shift * number) / len(each)
            for number, (key, each) in enumerate(importances.items())
        }
    limits = torch.cat([*ranks.values()]).unique()
    dense = cost_of({key: torch.ones_like(each, dtype=torch.bool) for key, each in ranks.items()})
    low, high = 0, len(limits)  # all above limits[high - 1] alone is cheap enough
    while low < high:
        middle = (low + high) // 2
        if cost_of(kept(ranks, limits[middle])) <= budget * dense * (1 + 1e-9):
            high = middle
        else:
            low = middle + 1
    return kept(ranks, limits[min(low, len(limits) - 1)])


def kept(ranks: Importances, limit: Tensor) -> Masks:
    """Masks of what lies at a limit or above, and the best of each group."""
    return {key: (each >= limit) | (each == each.max()) for key, each in ranks.items()}


def at_random(model: nn.Module, groups: Groups, train: Images, generator: torch.Generator) -> tuple[Importances, bool]:
    """A number drawn for every channel."""
    return {group.key: torch.rand(group.units, generator=generator) for group in groups}, True


def by_l1(model: nn.Module, groups: Groups, train: Images, generator: torch.Generator) -> tuple[Importances, bool]:
    """The L1 norm of the filters that write a channel (Li et al. 2017), the same share in every layer."""
    return {group.key: _filters(model, group).abs().sum(1) for group in groups}, True


def by_magnitude(
    model: nn.Module, groups: Groups, train: Images, generator: torch.Generator
) -> tuple[Importances, bool]:
    """The norm of all that a channel has, over all layers at once."""
    import torch_pruning

    return _by_torch_pruning(model, groups, torch_pruning.importance.GroupMagnitudeImportance(), train)


def by_taylor(model: nn.Module, groups: Groups, train: Images, generator: torch.Generator) -> tuple[Importances, bool]:
    """The first order of the loss by what a channel has, over all layers at once; it takes labels."""
    import torch_pruning

    return _by_torch_pruning(model, groups, torch_pruning.importance.GroupTaylorImportance(), train)


RANKINGS: dict[str, Ranking] = {
    "random": at_random,
    "l1": by_l1,
    "tp-magnitude": by_magnitude,
    "tp-taylor": by_taylor,
}


def _filters(model: nn.Module, group: Group) -> Tensor:
    """The filters that write the channels first, shape (units, numbers); others may write channels beside them."""
    weights = {part: model.get_parameter(part.tensor) for part in group.cut.writes if part.tensor.endswith(".weight")}
    part, weight = next((part, weight) for part, weight in weights.items() if weight.dim() > 1)
    return weight.detach()[part.start : part.start + group.units].flatten(1)


def _by_torch_pruning(model, groups, importance, train):
    """An importance of `torch-pruning` for the channels of our groups, after a backward pass of the train images.

    Channels of a stream that wider convolutions write in part, as where a shortcut is filled up with zeros, it does not
    know: they stay.
    """
    import torch_pruning

    model = copy.deepcopy(model).requires_grad_(True)
    for pixels, labels in zip(train[0].split(BATCH), train[1].split(BATCH), strict=True):
        nn.functional.cross_entropy(model(pixels), labels).backward()
    graph = torch_pruning.DependencyGraph().build_dependency(model, train[0][:1])
    found: dict[str, Tensor] = {}
    for group in groups:
        convolutions = [model.get_submodule(producer.path) for producer in group.producers]
        if any(len(each.weight) != group.units for each in convolutions):
            found[group.key] = torch.full((group.units,), torch.inf)
            continue
        (convolution, *_) = convolutions
        theirs = graph.get_pruning_group(convolution, torch_pruning.prune_conv_out_channels, list(range(group.units)))
        found[group.key] = importance(theirs).detach()
    return found, False
