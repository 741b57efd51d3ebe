"""Within: the units that are worth most under several budgets, or under one where costs are no sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ..architectures.group import Masks
from ..pricing.prices import Price

Find = Callable[[Mapping[str, Tensor], float], Masks]
"""The masks of most worth whose units cost no more than so much together, by tables of costs."""

_HALVINGS = 16  # of the sum that is searched for where costs are no sums
_MIXTURES = 6  # of several budgets


def within(prices: Sequence[Price], find: Find, worth: Callable[[Masks], float]) -> Masks:
    """The masks of most worth that are within all budgets.

    What is best under one budget alone, and is within the others, is best. Else budgets are mixed: a unit costs a
    weighted sum of its shares of them, and budgets that are not spent weigh less the next time.

    Args:
        prices: one for each budget.
        find: the search under a single one.
        worth: what masks are worth.

    Raises:
        ValueError: see `check_budget`.
    """
    for price in prices:
        masks = find(price.tables, price.room) if price.sums else _largest([price], price.tables, find)
        if all(other.holds(masks) for other in prices):
            return masks
    weights = [1 / len(prices)] * len(prices)
    found = []
    for _ in range(_MIXTURES):
        masks = _largest(prices, _mixed(prices, weights), find)
        found.append(masks)
        spent = [price.cost_of(masks) / price.limit for price in prices]
        weights = [weight * share**8 for weight, share in zip(weights, spent, strict=True)]
        weights = [weight / sum(weights) for weight in weights]
    return max(found, key=worth)


def _mixed(prices: Sequence[Price], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted sum of the shares that units take of several budgets."""
    return {
        key: sum(weight / price.limit * price.tables[key] for price, weight in zip(prices, weights, strict=True))
        for key in prices[0].tables
    }


def _largest(prices: Sequence[Price], tables: Mapping[str, Tensor], find: Find) -> Masks:
    """The masks that cost most by some tables, and are within all budgets.

    Raises:
        ValueError: see `check_budget`.
    """

    def fits(masks: Masks) -> bool:
        return all(price.holds(masks) for price in prices)

    most = sum(float(table[-1]) for table in tables.values())
    if fits(masks := find(tables, most)):
        return masks
    low, high, best = 0.0, most, None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        try:
            masks = find(tables, middle)
        except ValueError:  # it does not pay for the least that must stay
            low = middle
            continue
        if fits(masks):
            low, best = middle, masks
        else:
            high = middle
    return find(tables, low) if best is None else best
