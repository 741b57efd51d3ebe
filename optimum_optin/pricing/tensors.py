"""Parameters and bytes: what a model's tensors take, and how much of that goes with its units."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..architectures.group import Groups, Masks
from .overlaps import owned_weights


def count_parameters(model: nn.Module) -> int:
    """How many parameters a model has; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_bytes(model: nn.Module) -> int:
    """How many bytes the tensors take that a model is saved with; shared ones count once."""
    return int(sum(bytes_by_name(model).values()))


def parameters_by_name(model: nn.Module) -> dict[str, float]:
    """Name of a parameter -> how many numbers it has; shared ones by their first name."""
    return {name: float(parameter.numel()) for name, parameter in model.named_parameters()}


def bytes_by_name(model: nn.Module) -> dict[str, float]:
    """Name of a tensor that a model is saved with -> how many bytes it takes; shared ones by their first name."""
    seen: set[int] = set()
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = float(tensor.numel() * tensor.element_size())
    return found


def tensor_tables(
    model: nn.Module, groups: Groups, amounts: Mapping[str, float]
) -> tuple[dict[str, Tensor], Callable[[Masks], float]]:
    """What units take of a model's tensors.

    Args:
        model: the model as it is now.
        groups: its groups.
        amounts: name of each tensor -> what counts of it, such as `parameters_by_name`.

    Returns:
        Group key -> the amount that n units take beside all units of the other groups, float64, shape (units + 1,); and
        a function that tells how much is left of all tensors under masks.
    """
    weights = owned_weights(model, groups, amounts)
    besides = sum(amounts.values()) - sum(weight.amount for weight in weights)

    def left(masks: Masks) -> float:
        return besides + sum(weight.left(masks) for weight in weights)

    of_unit = dict.fromkeys((group.key for group in groups), 0.0)
    for weight in weights:
        for key in {each.key for owned in weight.dims for each in owned}:
            of_unit[key] += weight.of_unit(key)
    return {group.key: torch.arange(group.units + 1).double() * of_unit[group.key] for group in groups}, left
