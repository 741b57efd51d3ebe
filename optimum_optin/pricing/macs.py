"""MACs: what units cost, as tables for the search, and counts of whole models.

The budget follows the paper and Kwon et al. 2022: multiply-accumulates (MACs) of the transformer
layers' linears and attention for one sequence of the calibration set's mean length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..architectures.group import HEADS, Groups, Masks
from ..inputs.probes import probe_batch
from ..media.vision import prefix_tokens
from ..merging.hooks import is_mergeable
from ..merging.schedule import TokenCosts, TokenSchedule
from ..merging.stack import token_layers
from ..running.linears import weight_of
from .overlaps import apart, overlapping, overlapping_weights
from .unit_costs import macs_by_length, run_counted, unit_macs


def cost_tables(
    model: nn.Module, groups: Groups, tokens: int, schedule: TokenSchedule | None = None
) -> dict[str, Tensor]:
    """MACs of keeping n units of each group.

    Every unit of a group costs the same: the MACs that PyTorch's flop counter adds for one unit more (`unit_macs`).
    Where groups overlap (`overlaps.py`), this is what it costs beside all units of the others.

    Args:
        model: the model as it is now.
        groups: its groups.
        tokens: length of one sequence; for an image, the tokens of the first layer; for a pair, those of the text.
        schedule: how many tokens are merged on the way; `None` for none.

    Returns:
        Group key -> MACs of keeping n units, float64, shape (units + 1,).
    """
    macs = _unit_macs(model, groups, tokens, schedule)
    return {group.key: torch.arange(group.units + 1).double() * macs[group.key] for group in groups}


def token_costs(model: nn.Module, groups: Groups, tokens: int) -> TokenCosts:
    """What merging tokens saves and costs, in MACs of the layers that can merge.

    Args:
        model: the model as it is now; it must pass `check_mergeable`.
        groups: its groups.
        tokens: tokens that the first layer sees.
    """
    totals = {layer: torch.zeros(tokens + 1, dtype=torch.float64) for layer in token_layers(model, groups)}
    counts = torch.arange(tokens + 1).double()
    by_length = macs_by_length(model, groups)
    inside = [group for group in groups if group.key in by_length]
    for group in inside:
        linear, squared = by_length[group.key]
        totals[group.layer] += group.units * (linear * counts + squared * counts.square())
    channels = len(weight_of(model.get_submodule(inside[0].consumer))) if inside else 0
    pair = dict.fromkeys(totals, float(channels))  # outputs are compared where there are no keys
    pair |= {group.layer: float(group.width) for group in inside if group.role == HEADS}
    return TokenCosts({layer: total.tolist() for layer, total in totals.items()}, tokens, prefix_tokens(model), pair)


def matching_cost(model: nn.Module, groups: Groups, tokens: int, schedule: TokenSchedule | None) -> float:
    """MACs of comparing tokens in order to merge them; 0 without a schedule."""
    return token_costs(model, groups, tokens).matching(schedule) if schedule else 0.0


def total_cost(
    model: nn.Module, groups: Groups, tokens: int, schedule: TokenSchedule | None = None, masks: Masks | None = None
) -> float:
    """MACs of all that units have a part in, including those of comparing tokens in order to merge them.

    Args:
        model: the model as it is now.
        groups: its groups.
        tokens: see `cost_tables`.
        schedule: how many tokens are merged on the way; `None` for none.
        masks: group key -> units that are kept; `None` for all.
    """
    others = apart(groups)
    costs = cost_tables(model, others, tokens, schedule)
    units = dense_cost(costs) if masks is None else kept_cost(costs, masks)
    if len(others) < len(groups):
        weights = overlapping_weights(model, groups, probe_batch(model, tokens))
        units += sum(weight.left(masks or {}) for weight in weights)
    return units + matching_cost(model, groups, tokens, schedule)


def kept_cost(costs: Mapping[str, Tensor], masks: Masks) -> float:
    """The cost of the units that `masks` keep."""
    return sum(float(table[int(masks[key].sum())]) for key, table in costs.items())


def dense_cost(costs: Mapping[str, Tensor]) -> float:
    """The cost of all units."""
    return sum(float(table[-1]) for table in costs.values())


def count_macs(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """MACs of one forward pass as PyTorch's flop counter sees them (linears, convolutions, attention).

    Args:
        model: any model; what runs is counted.
        batch: its inputs.
    """
    return run_counted(model, batch).get_total_flops() // 2


def _unit_macs(model: nn.Module, groups: Groups, tokens: int, schedule: TokenSchedule | None) -> Mapping[str, float]:
    """Group key -> MACs that one unit adds."""
    found: dict[str, float] = {}
    if schedule is not None or is_mergeable(model):
        by_length = macs_by_length(model, groups)
        lengths = (schedule or TokenSchedule(protected=0)).lengths(token_layers(model, groups), tokens)
        for group in groups:
            if group.key in by_length:
                linear, squared = by_length[group.key]
                found[group.key] = linear * lengths[group.layer] + squared * lengths[group.layer] ** 2
    if len(found) == len(groups):
        return found
    batch = probe_batch(model, tokens)
    if keys := overlapping(groups):
        weights = overlapping_weights(model, groups, batch)
        found |= {key: sum(weight.of_unit(key) for weight in weights) for key in keys}
    others = apart(groups)
    others = replace(others, members=tuple(group for group in others if group.key not in found))
    return {**unit_macs(model, others, batch), **found} if len(others) else found
