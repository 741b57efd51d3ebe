"""Skips: modules that need not run once a group has lost all its units, found by cutting a copy without them.

Where all units of an attention or a feed-forward network are gone, its module returns the same for every token: it is
put to the test with a mask, and a stand-in in its place on a copy. If the module returns more than that, those that
write the units may still be skipped, as nothing reads what they return any more.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.group import Group, Skip
from ..editing.masking import masked
from ..editing.stand_ins import can_be_empty
from ..editing.surgery import rewrite
from ..keeping.interruption import raise_interruption
from ..running.batch import Batch
from ..running.forward import call_model
from ..running.memory import is_out_of_memory
from ..tracing.units import common_module
from .counters import undone

_ROUNDING = {torch.float64: 1e-7, torch.float32: 1e-4}  # others: half precision
_ROUGH = 5e-2
_TOKENS = 3  # dimensions of the hidden states of tokens; what has more may be a map

Call = tuple[tuple, Mapping[str, Any], Any]
"""What a module was given by position and by name, and what it returned."""


@torch.no_grad()
def with_skips(
    model: nn.Module, groups: Iterable[Group], layers: Mapping[str, str], sample: Batch
) -> tuple[Group, ...]:
    """The groups, with modules to skip where that was proved; those may lose their last unit.

    Args:
        model: the model, frozen; unchanged.
        groups: its groups; those that have modules to skip keep them.
        layers: its layers: name -> path.
        sample: what to run.
    """
    groups = tuple(groups)
    known: dict[Hashable, tuple[Skip, ...]] = {}
    found: list[Group] = []
    for group in groups:
        home = _home(group, layers.get(group.layer, ""))
        if group.cut.skips or not home:
            found.append(group)
            continue
        kind = _kind(group, home)
        if kind not in known:
            others = [name for other in groups if other.key != group.key for name in _tensors_of(other)]
            others += [path for path in layers.values() if path != home]
            known[kind] = tuple(_moved(skip, home, "") for skip in _skips_of(model, group, home, others, sample))
        skips = tuple(_moved(skip, "", home) for skip in known[kind])
        found.append(replace(group, least=0, cut=replace(group.cut, skips=skips)) if skips else group)
    return tuple(found)


def _home(group: Group, layer: str) -> str:
    """Path of the layer that a group is in, or of one of several like modules inside (an expert); `""` for neither."""
    path = common_module(_tensors_of(group))
    while path.startswith(f"{layer}.") and not path.rpartition(".")[2].isdigit():
        path = path.rpartition(".")[0]
    return path if path == layer or path.startswith(f"{layer}.") else ""


def _kind(group: Group, home: str) -> Hashable:
    """What groups have in common that are the same sublayer of like layers."""
    names = tuple(name.removeprefix(f"{home}.") for name in _tensors_of(group))
    return re.sub(r"\d+", "#", home), group.role, group.units, names


def _moved(skip: Skip, old: str, new: str) -> Skip:
    """A skip of a module in one layer as that of the same module in another."""
    path, reader = (
        each and f"{new}.{each.removeprefix(f'{old}.')}".removeprefix(".") for each in (skip.path, skip.reader)
    )
    return replace(skip, path=path, reader=reader)


def _skips_of(model: nn.Module, group: Group, home: str, others: Sequence[str], sample: Batch) -> tuple[Skip, ...]:
    """What to skip at home once a group has no units left, besides all others; nothing where it cannot be proved."""
    writes, reads = ([each.tensor for each in side] for side in (group.cut.writes, group.cut.reads))
    whole = list(_around([*writes, *reads], home, others))
    apart = [(path,) for path in _around(writes, home, [*others, *reads])]
    apart.append(tuple(dict.fromkeys(name.rpartition(".")[0] for name in writes)))
    calls, wanted = _masked_calls(model, group, {*whole, *(path for paths in apart for path in paths)}, sample)
    ways = [[_in_place_of(model, group, path, calls[path])] for path in whole if path in calls]
    ways += [[_form(model, path, calls[path]) for path in paths] for paths in apart if calls.keys() >= {*paths}]
    ways = [way for way in ways if None not in way]
    if not ways:
        return ()
    copied = copy.deepcopy(model, {id(each): each for each in (*model.parameters(), *model.buffers())})
    return next((tuple(way) for way in ways if _does_the_same(copied, group, way, sample, wanted)), ())


def _around(names: Iterable[str], home: str, others: Iterable[str]) -> Iterator[str]:
    """Paths of modules at home that hold all tensors of these names and none of the others, the largest first."""
    smallest, others = common_module(names), tuple(others)
    places = [place for place, letter in enumerate(smallest) if letter == "."] + [len(smallest)]
    for path in (smallest[:place] for place in places):
        # One of several in a list is called like the others, and what they are called goes by their class.
        alone = path.startswith(f"{home}.") and not path.rpartition(".")[2].isdigit()
        if alone and not any(f"{name}.".startswith(f"{path}.") for name in others):
            yield path


def _tensors_of(group: Group) -> list[str]:
    return [each.tensor for each in (*group.cut.writes, *group.cut.reads)]


def _masked_calls(
    model: nn.Module, group: Group, paths: Iterable[str], sample: Batch
) -> tuple[dict[str, Call], list[Tensor]]:
    """The last calls of modules in a pass without a group's units, by path, and what the model returned."""
    calls: dict[str, Call] = {}
    with ExitStack() as stack:
        for path in paths:
            hook = model.get_submodule(path).register_forward_hook(_noting_hook(calls, path), with_kwargs=True)
            stack.callback(hook.remove)
        stack.enter_context(masked(model, [group], {group.key: torch.zeros(group.units)}))
        outputs = _floats(call_model(model, sample))
    return calls, outputs


def _noting_hook(calls: dict[str, Call], path: str) -> Any:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        calls[path] = args, kwargs, output

    return hook


def _in_place_of(model: nn.Module, group: Group, path: str, call: Call) -> Skip | None:
    """How to skip a module that holds all of a group; `None` if it returns more than the same for every token."""
    skip = _form(model, path, call)
    output = _first(call[2])
    readers = [each.path for each in group.consumers]
    if skip is None:
        return None
    if len(readers) == 1 and can_be_empty(model.get_submodule(readers[0])):
        bias = model.get_submodule(readers[0]).bias
        expected = torch.zeros_like(output) if bias is None else bias.expand_as(output)
        return replace(skip, reader=readers[0]) if torch.allclose(output, expected, rtol=1e-5, atol=1e-6) else None
    only_tokens = output.dim() <= _TOKENS and not output.any()
    return replace(skip, width=output.shape[-1]) if only_tokens and not readers else None


def _form(model: nn.Module, path: str, call: Call) -> Skip | None:
    """How to skip a module whose output nothing reads; `None` if it is not given tokens, or returns other things."""
    args, kwargs, output = call
    names = list(inspect.signature(model.get_submodule(path).forward).parameters)
    first, rest = _first(output), output[1:] if isinstance(output, tuple) else ()
    if not isinstance(first, Tensor) or not all(each is None or isinstance(each, Tensor) for each in rest):
        return None
    given = [(names[place] if place < len(names) else "", place, value) for place, value in enumerate(args)]
    given += [(name, names.index(name) if name in names else 0, value) for name, value in kwargs.items()]
    for name, place, value in given:
        if isinstance(value, Tensor) and value.is_floating_point() and value.shape[:-1] == first.shape[:-1]:
            return Skip(path, name, place, len(output) if isinstance(output, tuple) else 0)
    return None


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) and output else output


def _does_the_same(
    copied: nn.Module, group: Group, skips: Sequence[Skip], sample: Batch, wanted: Sequence[Tensor]
) -> bool:
    """Whether a copy without a group's units and without these modules returns what the masked model does."""
    trial = replace(group, cut=replace(group.cut, skips=tuple(skips)))
    try:
        with undone(copied):
            rewrite(copied, [trial], {group.key: torch.zeros(group.units, dtype=torch.bool)})
            for skip in (each for each in skips if not each.reader and not each.width):  # as in a graph
                copied.get_submodule(skip.path).register_forward_hook(_as_column)
            found = _floats(call_model(copied, sample))
    except Exception as error:  # whatever a forward may raise that cannot deal with it
        raise_interruption(error)
        if is_out_of_memory(error):
            raise
        return False
    # What has another shape, such as attention weights, cannot be compared.
    pairs = [(one, other) for one, other in zip(found, wanted, strict=False) if one.shape == other.shape]
    return bool(pairs) and all(_agree(*pair) for pair in pairs)


def _as_column(module: nn.Module, args: tuple, output: Any) -> Any:
    """What a module returns, with one column in the place of no channels; see `no_channels`."""
    first = _first(output)
    column = first.new_zeros((*first.shape[:-1], 1))
    return (column, *output[1:]) if isinstance(output, tuple) else column


def _agree(found: Tensor, wanted: Tensor) -> bool:
    off, size = float((found.double() - wanted.double()).norm()), float(wanted.double().norm())
    return off <= _ROUNDING.get(wanted.dtype, _ROUGH) * size


def _floats(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return [each for part in parts for each in _floats(part)]
