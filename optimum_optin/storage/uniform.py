"""The uniform layout: equally many units in every layer, written into the model's own config.

The classes of transformers read sizes from the config, one number for all layers, so a model pruned this way loads with
transformers alone. A role whose architecture row names no `config_fields` cannot be expressed there and stays whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter

from transformers import PreTrainedModel

from ..architectures.group import Group, Masks
from ..architectures.registry import known_architectures, row_of
from ..discovery.find import is_declared
from ..models.identity import in_words
from .entry import structure_of_model


def check_sized_by_config(model: PreTrainedModel) -> None:
    """Raise if nobody knows where the config of the model's type has its sizes; asked before its groups are found.

    Raises:
        ValueError: the model type has no row.
    """
    if not is_declared(model):
        raise ValueError(
            f"layout='uniform' cannot prune this {in_words(model)}: its groups are found by tracing, "
            "which does not tell from what attributes of the config transformers reads a layer's size. Take "
            "layout='free', or register the model type with config_fields (register_architecture)."
        )


def check_uniform(model: PreTrainedModel, groups: Iterable[Group]) -> None:
    """Raise if the model cannot be pruned with layout='uniform'.

    Raises:
        ValueError: no group of the architecture names `config_fields`, or the model was pruned before, so that its
            layers differ.
    """
    if not any(group.config_fields for group in groups):
        able = [name for name in known_architectures() if _expressible(name)]
        raise ValueError(
            f"layout='uniform' cannot prune {model.config.model_type!r}: its architecture row names no config_fields, "
            f"attributes of the config that transformers reads a layer's size from; {', '.join(able)} have them. Take "
            "layout='free'."
        )
    if structure_of_model(model):
        raise ValueError(
            "layout='uniform' needs a model whose layers have the sizes its config says, but this one was pruned with "
            "layout='free': prune the dense model, or take layout='free' again."
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
    sizes = {
        name: attrgetter(name)(model.config) * int(masks[group.key].sum()) // group.units
        for group in groups
        for name in group.config_fields
    }
    for name, size in sizes.items():
        part, _, field = name.rpartition(".")
        setattr(attrgetter(part)(model.config) if part else model.config, field, size)


def _expressible(model_type: str) -> bool:
    return any(sublayer.config_fields for stack in row_of(model_type) for sublayer in stack.sublayers)
