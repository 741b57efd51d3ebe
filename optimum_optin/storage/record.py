"""Recording: what was cut is noted in the model's config, as `rebuild.py` needs it, and compared with the model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..architectures.group import QUERY_HEADS, Group
from ..counting.queries import by_query_heads
from ..discovery.find import find_groups, is_declared
from ..editing.surgery import rewrite
from ..keeping.doors import all_or_nothing
from ..merging.hooks import attach_mergers, check_attachable, merging_layers
from ..merging.schedule import TokenSchedule
from .auto_map import forget_remote_code, ordinary_class
from .entry import (
    FORMAT_VERSION,
    OptinStructureConfig,
    attention_without,
    entry_of,
    schedule_of_model,
    structure_of_model,
)
from .plugin import EARLIER_FORMATS
from .rebuild import Names, base_path, holds_count, holds_module, holds_tensor, is_saved, note, tensor_at, value_at
from .structure import Structure, compose, masks_of, ranges_to_json, structure_from_json, structure_to_json

logger = logging.get_logger(__name__)


def convert_model(model: nn.Module, structure: Structure, schedule: TokenSchedule | None = None) -> None:
    """Cut a model to `structure`, in place, and note it in its config.

    Args:
        model: a dense model, or one whose groups have the units that `structure` counts; one on the meta device only if
            its type is registered, for others are traced.
        structure: what to keep; groups that it does not name stay as they are.
        schedule: how many tokens to merge; `None` for none.

    Raises:
        ValueError: the structure or the schedule does not fit the model; the message names the entry.
    """
    if not is_declared(model) and any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            f"{type(model).__name__} is on the meta device, where it cannot be traced to find its groups: cut a model "
            "that is in memory, or load a folder that says what was cut (`rebuild`)."
        )
    groups = find_groups(model)
    if any(key.endswith(QUERY_HEADS) for key in structure):
        groups = by_query_heads(model, groups)
    masks = masks_of(structure, groups)
    check_recordable(model, _cut(groups, structure))
    if schedule is not None:
        check_attachable(model, groups, schedule)
    with all_or_nothing(model):
        rewrite(model, groups, masks)
        record_structure(model, structure, groups)
        if schedule is not None:
            merge_tokens_of(model, schedule)


def record_structure(model: nn.Module, later: Structure, groups: Iterable[Group]) -> Structure:
    """Note in the model's config what was just cut, on top of earlier prunings; return the whole structure.

    Args:
        model: the model as it is after the cut.
        later: what was kept of its groups.
        groups: its groups as they were before.

    Raises:
        ValueError: see `check_recordable`.
    """
    groups = _cut(groups, later)
    check_recordable(model, groups)
    earlier = _earlier(model)
    structure = compose(structure_from_json(earlier.structure), later)
    names = Names(model, earlier)
    tensors = [*(names.here(name, holds_tensor) for name in earlier.shapes), *_tensors_of(groups)]
    counters = [*(names.here(path, holds_count) for path in earlier.counters), *_counters_of(groups)]
    gone = {path for path in earlier.without if names.here(path, holds_module) is None}
    for group in groups:
        gone |= {path for path in group.cut.parts if not holds_module(model, path)}
    # What was inside of modules that do not run any more is not there.
    entry = OptinStructureConfig(
        structure_to_json(structure),
        tokens=earlier.tokens,
        base=base_path(model),
        shapes={name: list(tensor_at(model, name).shape) for name in tensors if name and holds_tensor(model, name)},
        counters={path: value_at(model, path) for path in counters if path and holds_count(model, path)},
        selectors=dict(_selectors(model)),
        stand_ins={path: entry for path, module in model.named_modules() if (entry := _stand_in_entry(module))},
        without=sorted(gone),
        merging=earlier.merging,
    )
    note(model, entry)
    return structure


def merge_tokens_of(model: nn.Module, schedule: TokenSchedule) -> None:
    """Let a model merge tokens from now on, in place, and note it in its config beside the structure.

    Raises:
        ValueError: see `attach_merging`.
    """
    entry, layers = entry_of(model), merging_layers(model, find_groups(model), schedule)
    attach_mergers(model, layers, schedule)
    entry.tokens, entry.merging = schedule.to_json(), [each._asdict() for each in layers]
    note(model, entry)


def check_recordable(model: nn.Module, groups: Iterable[Group]) -> None:
    """Raise if a model could not be saved once these groups are cut; may be asked before the cut.

    Raises:
        ValueError: something that their units own is not saved (`unsavable`), or an earlier pruning had other groups of
            these names.
    """
    earlier = structure_of_model(model)
    for group in groups:
        if reason := unsavable(model, group):
            raise ValueError(f"{group.key} cannot be cut, as {reason}: exclude it.")
        if group.key in earlier and len(earlier[group.key].kept) != group.units:
            raise ValueError(
                f"{group.key} has {group.units} units, but an earlier pruning left {len(earlier[group.key].kept)} of "
                "what had this name then: prune the dense model, or exclude it."
            )


def unsavable(model: nn.Module, group: Group) -> str | None:
    """Why a model could not be saved and loaded once a group of it is cut; `None` if it could.

    Costs nothing, and may be asked before the cut.
    """
    for name in _tensors_of([group]):
        if not is_saved(model, name):
            return (
                f"{name}, which its units own a part of, is not among the weights on disk, and is made anew on loading"
            )
    return None


def check_structure(model: nn.Module) -> None:
    """Raise if the model's modules are not what its config says earlier prunings left.

    Raises:
        ValueError: names the first that is not; or the model is quantized; or it merges tokens, and then it cannot be
            pruned any more.
    """
    if schedule_of_model(model) is not None:
        raise ValueError("this model merges tokens already, which comes last: prune the model that it was made from.")
    check_recorded(model)


def check_recorded(model: nn.Module) -> None:
    """Raise if a model is not what its config says earlier prunings left. Its groups need not be known.

    Tensors that are not there any more, or not plain ones, are passed over: somebody has changed its modules since, and
    knows why.

    Raises:
        ValueError: names the first that is not.
    """
    entry = entry_of(model)
    if entry is None:
        return
    if entry.format_version == 1:
        if is_declared(model):
            check_units(model, find_groups(model))
        return
    names, found = Names(model, entry), 0
    for name, shape in entry.shapes.items():
        here = names.here(name, holds_tensor)
        tensor = here and tensor_at(model, here)
        if tensor is None or type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_floating_point():
            continue
        found += 1
        if list(tensor.shape) != list(shape):
            raise _unlike(f"{here} has the shape {tuple(shape)}", f"{tuple(tensor.shape)}")
    for path, value in entry.counters.items():
        here = names.here(path, holds_count)
        if here and value_at(model, here) != value:
            raise _unlike(f"{here} is {value}", f"{value_at(model, here)}")
    if entry.shapes and not found:
        raise _unlike(f"{next(iter(entry.shapes))} was cut", "nothing that was")


def check_units(model: nn.Module, groups: Iterable[Group]) -> None:
    """Raise if a model's groups do not have the units that its config says earlier prunings left.

    Raises:
        ValueError: names the first entry that does not fit.
    """
    units = {group.key: group.units for group in groups}
    for key, entry in structure_of_model(model).items():
        if len(entry.kept) != units.get(key, 0):
            raise _unlike(f"{key} keeps {len(entry.kept)} units", f"{units.get(key, 0)}")


def upgraded(
    kind: type[PreTrainedModel], config: PreTrainedConfig, entry: OptinStructureConfig
) -> OptinStructureConfig:
    """An entry of format 1 in format 2, found by cutting a skeleton as its architecture's row says.

    Args:
        kind: the class of the model that was saved.
        config: the model's config.
        entry: the entry.

    Raises:
        ValueError: the class takes more than a config, or its type is not registered.
    """
    config = copy.deepcopy(config)
    vars(config).pop("quantization_config", None)
    schedule = entry.tokens and TokenSchedule.from_json(entry.tokens)
    try:
        with torch.device("meta"):
            skeleton = kind(config)
            convert_model(skeleton, structure_from_json(entry.structure), schedule)
    except Exception as error:  # a class of the user's own may raise anything
        raise ValueError(
            f"this {kind.__name__} was saved in format 1 of optimum-optin, and cannot be noted in format "
            f"{FORMAT_VERSION}: {error}"
        ) from error
    return entry_of(skeleton)


def _earlier(model: nn.Module) -> OptinStructureConfig:
    """What earlier prunings noted, in this format."""
    entry = entry_of(model)
    if entry is None:
        return OptinStructureConfig({})
    if entry.format_version == FORMAT_VERSION:
        return entry
    entry = upgraded(ordinary_class(type(model)), model.config, entry)
    if hasattr(model, "optin_convert") and not hasattr(model, "optin_rebuild"):
        model.__class__ = ordinary_class(type(model))
        forget_remote_code(model)
        logger.warning(
            "the remote code that this model was loaded with cannot load what is saved from now on: save with "
            "remote_code=True to have it written anew."
        )
    return entry


def _cut(groups: Iterable[Group], structure: Structure) -> list[Group]:
    """The groups that lose units by a structure."""
    return [group for group in groups if group.key in structure and len(structure[group.key].kept) < group.units]


def _tensors_of(groups: Iterable[Group]) -> list[str]:
    return [part.tensor for group in groups for part in (*group.cut.writes, *group.cut.reads)]


def _counters_of(groups: Iterable[Group]) -> list[str]:
    return [path for group in groups for path in group.cut.counters]


def _selectors(model: nn.Module) -> Iterator[tuple[str, dict[str, str]]]:
    """Path of each module that picks heads from a bias of all -> its argument, the heads, and of how many they are."""
    for path, module in model.named_modules():
        kept: dict[str, list[int]] = {}
        heads: dict[str, int | None] = {}
        for hook in module._forward_pre_hooks.values():
            if hasattr(hook, "argument") and hasattr(hook, "kept"):  # a HeadSelector, of a folder's remote code as well
                before = kept.get(hook.argument)
                kept[hook.argument] = hook.kept if before is None else [before[index] for index in hook.kept]
                heads.setdefault(hook.argument, getattr(hook, "heads", None))
        if kept:
            of = {argument: "" if count is None else f" of {count}" for argument, count in heads.items()}
            yield path, {argument: ranges_to_json(indices) + of[argument] for argument, indices in kept.items()}


def _stand_in_entry(module: nn.Module) -> dict[str, Any] | None:
    """What a loader must know of a stand-in, of a folder's remote code as well; `None` for any other module."""
    if type(module).__name__ == "StandIn":
        return dict(module.form)
    if getattr(module, "in_graphs", False):
        return attention_without("")
    return attention_without(module.consumer_name or "") if hasattr(module, "consumer_name") else None


def _unlike(noted: str, found: str) -> ValueError:
    return ValueError(
        f"the config says that {noted}, but the model has {found}: a model made from a pruned model's config is dense. "
        "Load it with from_pretrained, or delete config.quantization_config."
    )


EARLIER_FORMATS[1] = convert_model
