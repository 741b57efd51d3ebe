"""The uniform layout: equally many units in every layer, written into the model's own config.

The classes of transformers read sizes from the config, one number for all layers, so a model pruned this way loads with
transformers alone. A role without `config_fields` cannot be expressed there and stays whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from ..architectures.group import Group, Groups, Masks
from ..architectures.registry import known_architectures, row_of
from ..discovery.find import is_declared
from ..models.identity import in_words
from .entry import structure_of_model
from .sizes import sized, written


def uniform_groups(model: PreTrainedModel, groups: Groups) -> Groups:
    """A model's groups with the `config_fields` by which layout='uniform' prunes it.

    A row in the table of architectures names them; for any other model they are found (`sizes.py`).

    Raises:
        ValueError: no group has any, or the model was pruned before, so that its layers differ.
    """
    if structure_of_model(model):
        raise ValueError(
            "layout='uniform' needs a model whose layers have the sizes its config says, but this one was pruned with "
            "layout='free': prune the dense model, or take layout='free' again."
        )
    if is_declared(model):
        _check_named(model, groups)
        return groups
    groups = sized(model, groups)
    if not any(group.config_fields for group in groups):
        raise ValueError(
            f"layout='uniform' cannot prune this {in_words(model)}: no attribute of its config was found from which "
            f"its class reads how many {' or '.join(dict.fromkeys(group.role for group in groups))} a layer has, and "
            "nothing else. Take layout='free'."
        )
    return groups


def fully_sized(members: Iterable[Group], groups: Iterable[Group]) -> tuple[Group, ...]:
    """Members without the `config_fields` that they share with groups that are no members, as all have one size.

    Args:
        members: those of the groups that can be cut.
        groups: all of them.
    """
    members = tuple(members)
    keys = {group.key for group in members}
    stuck = {name for group in groups if group.key not in keys for name in group.config_fields}
    return tuple(replace(each, config_fields=()) if stuck & set(each.config_fields) else each for each in members)


def check_has_config(model: nn.Module) -> None:
    """Raise if there is no config that sizes could be written to; asked before a model's groups are found.

    Raises:
        ValueError: it is a plain module.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"layout='uniform' cannot prune this {in_words(model)}: it writes the sizes of layers to the config of a "
            "model of transformers, and this one has none. Take layout='free'."
        )


def _check_named(model: PreTrainedModel, groups: Iterable[Group]) -> None:
    """Raise if no group of a registered architecture names `config_fields`."""
    if not any(group.config_fields for group in groups):
        able = [name for name in known_architectures() if _expressible(name)]
        raise ValueError(
            f"layout='uniform' cannot prune {model.config.model_type!r}: its architecture row names no config_fields, "
            f"attributes of the config that transformers reads a layer's size from; {', '.join(able)} have them. Take "
            "layout='free'."
        )


def uniform_floors(groups: Iterable[Group], floors: Mapping[str, int]) -> dict[str, int]:
    """`floors` for a uniform search: all units of a role that must stay whole, at least one unit of other roles.

    Args:
        groups: the model's groups.
        floors: role -> units that every group keeps at least.
    """
    least = {role: max(1, floor) for role, floor in floors.items()}
    for group in groups:
        least[group.role] = max(least.get(group.role, 1), 0 if group.config_fields else group.units)
    return least


def record_sizes(model: PreTrainedModel, groups: Iterable[Group], masks: Masks) -> None:
    """Note in the model's config what every layer kept, in place.

    Args:
        model: the rewritten model; its config still has the earlier sizes.
        groups: its groups before they were cut.
        masks: what was kept; equally many units in all groups of a role.
    """
    groups = [group for group in groups if int(masks[group.key].sum()) < group.units]
    written(model.config, groups, lambda group: int(masks[group.key].sum()))


def _expressible(model_type: str) -> bool:
    return any(sublayer.config_fields for stack in row_of(model_type) for sublayer in stack.sublayers)
