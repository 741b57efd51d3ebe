"""Depth: whole sublayers and layers that may go before single units do, the cheapest by the scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from ..architectures.group import HEADS, NEURONS, Group
from ..config import OptinConfig
from .limits import Limit, numbers_of
from .selection import limits_of

Sublayers = tuple[str, ...]
"""Keys of groups that lose all their units."""

_SUBLAYERS = (1, 2, 4)  # that are tried
_LAYERS = (1, 2)


def depths(
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Tensor],
    budget: float,
    config: OptinConfig,
) -> list[Sublayers]:
    """The sublayers to do without: as many as configured; or several ways to choose among, the first of them none.

    What a sublayer loses is the sum of its units' scores, and what counts is the loss for each MAC.

    Args:
        groups: all groups.
        scores: group key -> combined score per unit.
        costs: group key -> cost of keeping n units.
        budget: what units may cost; sublayers go only as long as all that is left costs no less.
        config: the number, or `"auto"`, and what may go.

    Raises:
        ValueError: there are not so many sublayers that may go whole.
    """
    able = _able(groups, config)
    cheapest = sorted(able, key=lambda key: _worth([key], scores, costs))
    if config.depth != "auto":
        if config.depth > len(able):
            raise ValueError(
                f"depth={config.depth}: of this model {len(able)} sublayers may lose all their units. Ask for fewer, "
                "lower floors, exclude less or keep less."
            )
        return [tuple(cheapest[: config.depth])]
    found: list[Sublayers] = [()]
    for some in (*(cheapest[:count] for count in _SUBLAYERS), *_layers(groups, able, scores, costs)):
        left = sum(float(table[-1]) for key, table in costs.items() if key not in some)
        if some and left >= budget and {*some} not in [{*other} for other in found]:
            found.append(tuple(some))
    return found


def without(limits: Mapping[str, Limit], sublayers: Sublayers) -> dict[str, Limit]:
    """Limits under which these sublayers keep nothing."""
    return {key: Limit(most=0) if key in sublayers else limit for key, limit in limits.items()}


def _able(groups: Sequence[Group], config: OptinConfig) -> list[str]:
    """Keys of the sublayers that may go whole: `min_heads` and `min_neurons` hold for those that stay."""
    limits = limits_of(replace(config, min_heads=0, min_neurons=0), groups)
    roles = tuple(group for group in groups if group.role.endswith((HEADS, NEURONS)))
    return [group.key for group in roles if numbers_of(group.key, limits, group.units)[0] == 0]


def _layers(
    groups: Sequence[Group], able: Sequence[str], scores: Mapping[str, Tensor], costs: Mapping[str, Tensor]
) -> Iterator[list[str]]:
    """All sublayers of the cheapest layers that may go whole."""
    members: dict[str, list[str]] = {}
    for group in groups:
        members.setdefault(group.layer, []).append(group.key)
    whole = [keys for keys in members.values() if {*keys} <= {*able}]
    whole.sort(
        key=lambda keys: sum(float(scores[key].sum()) for key in keys) / sum(float(costs[key][-1]) for key in keys)
    )
    for count in _LAYERS:
        yield [key for keys in whole[:count] for key in keys]


def _worth(keys: Sequence[str], scores: Mapping[str, Tensor], costs: Mapping[str, Tensor]) -> float:
    """What groups lose for each MAC that goes with them."""
    return sum(float(scores[key].sum()) for key in keys) / sum(float(costs[key][-1]) for key in keys)
