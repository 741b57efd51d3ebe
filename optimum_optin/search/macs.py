"""What units cost: the budget's tables, and counts of whole models.

The budget follows the paper and Kwon et al. 2022: multiply-accumulates (MACs) of the transformer
layers' linears and attention for one sequence of the calibration set's mean length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..architectures.find import find_groups, find_layers
from ..architectures.group import HEADS, Group, Masks, stack_of
from ..inputs.probes import probe_batch
from ..inputs.vision import prefix_tokens
from ..merging.schedule import TokenCosts, TokenSchedule
from ..passes.hooks import observed
from ..running.facts import measured_once
from ..running.forward import call_model
from ..running.freezing import frozen


def cost_tables(
    model: nn.Module, groups: Iterable[Group], tokens: int, schedule: TokenSchedule | None = None
) -> dict[str, Tensor]:
    """MACs of keeping n units of each group.

    A unit costs tokens x (its producers' rows + its consumer's columns); a head adds the attention
    itself, 2 x tokens^2 x width.

    Args:
        model: the model as it is now.
        groups: its groups.
        tokens: T, tokens of one sequence; of an image, tokens of the first layer; of a pair, of the text.
        schedule: tokens that are merged on the way; `None` for none.

    Returns:
        Group key -> MACs of keeping n units, float64, shape (units + 1,).
    """
    groups = list(groups)
    lengths = _lengths(model, groups, tokens, schedule)
    return {
        group.key: torch.arange(group.units + 1).double() * _unit_macs(model, group, *lengths[group.key])
        for group in groups
    }


def token_costs(model: nn.Module, groups: Iterable[Group], tokens: int) -> TokenCosts:
    """What merging tokens saves and costs, in MACs.

    Args:
        model: the model as it is now; see `check_mergeable`.
        groups: its groups.
        tokens: of the first layer.
    """
    groups = list(groups)
    totals = {layer: torch.zeros(tokens + 1, dtype=torch.float64) for layer in find_layers(model)}
    counts = torch.arange(tokens + 1).double()
    for group in groups:
        once, twice = (_unit_macs(model, group, count, count) for count in (1, 2))
        squared = (twice - 2 * once) / 2  # MACs are a * n + b * n^2
        totals[group.layer] += group.units * ((once - squared) * counts + squared * counts.square())
    channels = model.get_submodule(groups[0].consumer).out_features if groups else 0
    pair = dict.fromkeys(totals, float(channels))  # compared where there are no keys
    pair |= {group.layer: float(group.width) for group in groups if group.role == HEADS}
    return TokenCosts({layer: total.tolist() for layer, total in totals.items()}, tokens, prefix_tokens(model), pair)


def matching_cost(model: nn.Module, schedule: TokenSchedule | None, tokens: int) -> float:
    """MACs of comparing tokens in order to merge them; 0 without a schedule."""
    return token_costs(model, find_groups(model), tokens).matching(schedule) if schedule else 0.0


def total_cost(
    model: nn.Module, tokens: int, schedule: TokenSchedule | None = None, masks: Masks | None = None
) -> float:
    """MACs of the transformer layers, those of comparing tokens in order to merge them included.

    Args:
        model: the model as it is now.
        tokens: see `cost_tables`.
        schedule: tokens that are merged on the way; `None` for none.
        masks: group key -> units that are kept; `None` for all.
    """
    costs = cost_tables(model, find_groups(model), tokens, schedule)
    units = dense_cost(costs) if masks is None else kept_cost(costs, masks)
    return units + matching_cost(model, schedule, tokens)


def kept_cost(costs: Mapping[str, Tensor], masks: Masks) -> float:
    """What the units that `masks` keep cost."""
    return sum(float(table[int(masks[key].sum())]) for key, table in costs.items())


def dense_cost(costs: Mapping[str, Tensor]) -> float:
    """What keeping every unit costs."""
    return sum(float(table[-1]) for table in costs.values())


def count_macs(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """MACs of one forward pass as PyTorch's flop counter sees them (linears, convolutions, attention).

    Args:
        model: any model; the count is of what runs.
        batch: its inputs.
    """
    with frozen(model), torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        call_model(model, batch)
    return counter.get_total_flops() // 2


def count_parameters(model: nn.Module) -> int:
    """Parameters of the model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def _lengths(
    model: nn.Module, groups: list[Group], tokens: int, schedule: TokenSchedule | None
) -> dict[str, tuple[int, int]]:
    """Group key -> tokens that its linears see, and tokens that each attends to."""
    if len({stack_of(group.layer) for group in groups}) < 2 and not any(group.residual.windowed for group in groups):
        layers = find_layers(model)
        lengths = schedule.lengths(layers, tokens) if schedule else dict.fromkeys(layers, tokens)
        return {group.key: (lengths[group.layer],) * 2 for group in groups}

    def measure() -> dict[str, tuple[int, int]]:
        with frozen(model), observed(model, [group.consumer for group in groups]) as seen:
            call_model(model, probe_batch(model, tokens))
        shapes = {group.key: seen[group.consumer].input.shape for group in groups}  # (windows, tokens, features)
        return {key: (shape[0] * shape[1], shape[1]) for key, shape in shapes.items()}

    return measured_once(model, ("lengths", tokens, tuple(group.key for group in groups)), measure)


def _unit_macs(model: nn.Module, group: Group, tokens: int, attended: int) -> int:
    width = group.width
    macs = tokens * width * model.get_submodule(group.consumer).out_features
    for producer in group.producers:
        macs += tokens * width * producer.parts * model.get_submodule(producer.path).in_features
    return macs + (2 * tokens * attended * width if group.role == HEADS else 0)


def _count_cpu_attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


# PyTorch 2.13 counts every fused attention but the CPU's.
_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _count_cpu_attention}
