"""Prices: for each budget that is set, what units cost, what all else does, and the most that the model may."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..architectures.group import Groups, Masks
from ..config import BUDGETS, OptinConfig
from ..inputs.probes import probe_batch
from ..merging.schedule import TokenSchedule
from ..quantities import amount_of
from .macs import cost_tables, count_macs, matching_cost, total_cost
from .overlaps import overlapping
from .tensors import bytes_by_name, parameters_by_name, tensor_tables

ROUNDING = 1 + 1e-9  # a budget is the outcome of float arithmetic: the dense cost must fit a budget of "all of it"


@dataclass(frozen=True)
class Price:
    """What one budget limits.

    Args:
        name: of the budget, such as `"flops"`.
        tables: group key -> cost of keeping n units, float64, shape (units + 1,).
        fixed: the cost of all else.
        dense: the cost that shares are shares of.
        limit: the most that a model may cost.
        cost_of: what a model costs that keeps what masks say, `fixed` included.
        sums: whether that is the sum of what `tables` say, and `fixed`.
    """

    name: str
    tables: Mapping[str, Tensor]
    fixed: float
    dense: float
    limit: float
    cost_of: Callable[[Masks], float]
    sums: bool

    @property
    def room(self) -> float:
        """The most that units may cost."""
        return self.limit - self.fixed

    def holds(self, masks: Masks) -> bool:
        """Whether a model that keeps what masks say is within the budget."""
        return self.cost_of(masks) <= self.limit * ROUNDING


def prices_of(
    model: nn.Module, groups: Groups, tokens: int, config: OptinConfig, schedule: TokenSchedule | None
) -> list[Price]:
    """A price for each budget that a configuration sets.

    Args:
        model: the dense model.
        groups: its groups.
        tokens: see `cost_tables`.
        config: the configuration.
        schedule: how many tokens are merged; `None` for none.
    """
    sums = not overlapping(groups)

    def flops() -> Price:
        dense, matching = total_cost(model, groups, tokens), matching_cost(model, groups, tokens, schedule)
        limit = amount_of("flops", config.flops, dense)
        if isinstance(config.flops, str):  # of the whole model; the price is of what units have a part in
            limit -= count_macs(model, probe_batch(model, tokens)) - dense
        tables = cost_tables(model, groups, tokens, schedule)
        return Price(
            "flops",
            tables,
            matching,
            dense,
            limit,
            lambda masks: total_cost(model, groups, tokens, schedule, masks),
            sums,
        )

    def tensors(name: str, amounts: Mapping[str, float]) -> Price:
        dense = sum(amounts.values())
        tables, left = tensor_tables(model, groups, amounts)
        fixed = dense - sum(float(table[-1]) for table in tables.values())
        return Price(name, tables, fixed, dense, amount_of(name, getattr(config, name), dense), left, sums)

    made = {
        "flops": flops,
        "params": lambda: tensors("params", parameters_by_name(model)),
        "memory": lambda: tensors("memory", bytes_by_name(model)),
    }
    return [made[name]() for name in BUDGETS if getattr(config, name) is not None]
