"""Readiness: every reason not to prune a model as configured that is known before data are read or units scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from .architectures.group import Groups
from .config import OptinConfig
from .counting.queries import by_query_heads
from .inputs.modalities import modality_of
from .merging.hooks import merges_tokens
from .merging.schedule import TokenSchedule
from .models.identity import in_words
from .pricing.macs import kept_cost
from .pricing.prices import Price, prices_of
from .proving.architecture import proved, sliceable_groups
from .publishing.remote_code import check_remote_code
from .search.limits import Limits, numbers_of
from .search.masks import check_budget, minimum_cost
from .search.selection import limits_of
from .storage.record import check_recordable, unsavable
from .storage.uniform import check_has_config, fully_sized, uniform_groups

logger = logging.get_logger(__name__)


def prunable_groups(model: PreTrainedModel, config: OptinConfig) -> Groups:
    """Find the model's groups, and check that they can be cut as configured.

    Raises:
        ValueError: says what is in the way, and what to do.
    """
    if config.layout == "uniform":
        check_has_config(model)
    groups = sliceable_groups(model)
    if config.gqa_units == "query_heads":
        groups = by_query_heads(model, groups)
    modality_of(model)  # raises if its samples are of no kind that data are read for
    if config.layout == "uniform":
        groups = uniform_groups(model, groups)
    limits_of(config, groups)
    return groups


def proved_groups(model: PreTrainedModel, config: OptinConfig) -> Groups:
    """The model's groups, if it was proved on one sample that they can be cut and, if configured, refitted.

    Raises:
        ValueError: says what is in the way, and what to do.
    """
    found = groups = prunable_groups(model, config)
    limits = limits_of(config, groups)
    floors = {group.key: numbers_of(group.key, limits, group.units)[0] for group in groups}
    groups = proved(model, groups, refits=config.compensation != "none", floors=floors)
    unsaved = {group.key: reason for group in groups if (reason := unsavable(model, group))}
    members = tuple(group for group in groups if group.key not in unsaved)
    if config.layout == "uniform":
        members = fully_sized(members, found)
    check_recordable(model, [group for group in members if floors[group.key] < group.units])
    return replace(groups, members=members, left_whole={**groups.left_whole, **unsaved})


def check_cut(model: PreTrainedModel, groups: Groups, config: OptinConfig) -> None:
    """Raise if there is nothing to cut, or the result could not be what the configuration asks for.

    Raises:
        ValueError: says why.
    """
    if not any(group.units for group in groups):
        raise ValueError("this model has no unit left to prune: its layers are empty already.")
    if config.remote_code:
        check_remote_code(model)
    if config.merging == "auto" and not merges_tokens(model, config):
        cause = "layout='uniform'" if config.layout == "uniform" else f"this {in_words(model)}"
        logger.warning(f"merging='auto' merges none: {cause} does not allow it (docs/source/guides/merge_tokens.mdx).")


def check_affordable(
    model: PreTrainedModel,
    groups: Groups,
    tokens: int,
    config: OptinConfig,
    schedule: TokenSchedule | None,
) -> None:
    """Raise if the budget does not pay for the floors beside a schedule of merging tokens.

    Raises:
        ValueError: see `check_budget`.
    """
    limits = limits_of(config, groups)
    for price in prices_of(model, groups, tokens, config, schedule):
        tables = _least_tables(price, groups, limits)
        check_budget(tables, price.room, limits, dense=price.dense, spent=price.fixed, name=price.name)


def least_budget(
    model: PreTrainedModel,
    groups: Groups,
    tokens: int,
    config: OptinConfig,
    schedule: TokenSchedule | None,
) -> float:
    """The smallest budget of MACs that pays for the floors beside a schedule of merging tokens; a share of the dense
    cost."""
    limits = limits_of(config, groups)
    (price,) = prices_of(model, groups, tokens, config, schedule)
    return (minimum_cost(_least_tables(price, groups, limits), limits) + price.fixed) / price.dense


def _least_tables(price: Price, groups: Groups, limits: Limits) -> Mapping[str, Tensor]:
    """Tables of costs whose sum over what must stay is what that costs."""
    if price.sums:
        return price.tables
    numbers = {group.key: numbers_of(group.key, limits, group.units)[0] for group in groups}
    least = {group.key: torch.arange(group.units) < numbers[group.key] for group in groups}
    share = (price.cost_of(least) - price.fixed) / max(kept_cost(price.tables, least), 1)
    return {key: table * share for key, table in price.tables.items()}
