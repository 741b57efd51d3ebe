"""Prices: for each budget that is set, what units cost, what all else does, and the most that the model may."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..architectures.group import Groups, Masks
from ..config import BUDGETS, OptinConfig
from ..inputs.probes import probe_batch, samples_of
from ..merging.schedule import TokenSchedule
from ..quantities import amount_of
from .macs import cost_tables, count_macs, dense_cost, kept_cost, matching_cost, total_cost
from .overlaps import joined, overlapping
from .peaks import peak_bytes
from .stairs import climbed, on_stairs
from .tensors import bytes_by_name, parameters_by_name, tensor_tables
from .timetables import timetable_of

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
    made = {
        "flops": lambda: _flops(model, groups, tokens, config, schedule),
        "params": lambda: _tensors("params", model, groups, config, parameters_by_name(model)),
        "memory": lambda: _memory(model, groups, tokens, config),
        "latency": lambda: _latency(model, groups, tokens, config),
    }
    return [made[name]() for name in BUDGETS if getattr(config, name) is not None]


def _flops(model: nn.Module, groups: Groups, tokens: int, config: OptinConfig, schedule: TokenSchedule | None) -> Price:
    dense, matching = total_cost(model, groups, tokens), matching_cost(model, groups, tokens, schedule)
    limit = amount_of("flops", config.flops, dense)
    if isinstance(config.flops, str):  # of the whole model; the price is of what units have a part in
        limit -= count_macs(model, probe_batch(model, tokens)) - dense
    tables = cost_tables(model, groups, tokens, schedule)

    def cost_of(masks: Masks) -> float:
        return total_cost(model, groups, tokens, schedule, masks)

    return Price("flops", tables, matching, dense, limit, cost_of, not overlapping(groups))


def _tensors(name: str, model: nn.Module, groups: Groups, config: OptinConfig, amounts: Mapping[str, float]) -> Price:
    dense = sum(amounts.values())
    tables, left = tensor_tables(model, groups, amounts)
    limit = amount_of(name, getattr(config, name), dense)
    return Price(name, tables, dense - dense_cost(tables), dense, limit, left, not overlapping(groups))


def _memory(model: nn.Module, groups: Groups, tokens: int, config: OptinConfig) -> Price:
    """Bytes on disk; or of a pass, in which units are worth what their weights are, and counted with all between."""
    on_disk = _tensors("memory", model, groups, config, bytes_by_name(model))
    if config.memory_batch_size is None:
        return on_disk
    batch = samples_of(model, config.memory_length or tokens, config.memory_batch_size)
    dense = float(peak_bytes(model, batch))
    return Price(
        "memory",
        on_disk.tables,
        dense - dense_cost(on_disk.tables),
        dense,
        amount_of("memory", config.memory, dense),
        lambda masks: float(peak_bytes(model, batch, groups, masks)),
        sums=False,
    )


def _latency(model: nn.Module, groups: Groups, tokens: int, config: OptinConfig) -> Price:
    """Seconds, measured; where groups overlap, they follow MACs."""
    timed = timetable_of(model, groups, tokens, config)
    dense, alone = timed.seconds, timed.tables()
    overlapped = joined(groups)
    macs, per_mac = total_cost(model, overlapped, tokens), 0.0
    if len(overlapped):
        half = {group.key: group.every_other() for group in overlapped}
        per_mac = timed.saved * dense / (macs - total_cost(model, overlapped, tokens, None, half))
    linear = {key: table * per_mac for key, table in cost_tables(model, overlapped, tokens).items()}
    tables = {key: on_stairs(table, timed.multiple) for key, table in linear.items()} | alone

    def cost_of(masks: Masks) -> float:
        gone = dense_cost(alone) - kept_cost(alone, {key: masks[key] for key in alone})
        wider = {group.key: group.first(climbed(int(masks[group.key].sum()), timed.multiple)) for group in overlapped}
        return dense - gone - per_mac * (macs - total_cost(model, overlapped, tokens, None, wider))

    limit = amount_of("latency", config.latency, dense)
    return Price("latency", tables, dense - dense_cost(tables), dense, limit, cost_of, not len(overlapped))
