"""Mask equals cut: the one fact that scoring, evaluation and rewriting rest on, put to the test on a copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..architectures.group import Group, Groups
from ..counting.coupling import every_second
from ..editing.masking import masked
from ..editing.surgery import groups_after, rewrite
from ..keeping.interruption import raise_interruption
from ..running.batch import Batch
from .observation import Observation, consumers_of, difference, differences, fed, observe, states_of

_SOME, _HALF, _ONE, _NONE = (
    "every second unit of every second group",
    "every second unit",
    "all units but the least that may stay",
    "all units that may go",
)  # what is cut, one after the other

_ROW = "its row names a wrong width, producer or consumer, or misses a counter, a table or a shared bias"
_ADDED_UP = 100  # times rounding, over many layers
_MUCH = 1e-3  # rounding, in half precision, that adds up over many layers
_ROUGH = "; or more is lost to rounding than is usual: prove it in float32 (dtype='float32')"


@dataclass(frozen=True)
class Trial:
    """How a model that was cut did beside the masked one.

    Args:
        problem: what was different, `None` if nothing was.
        least: how few units of each group may stay.
        largest: the largest difference that was taken for rounding.
    """

    problem: str | None = None
    least: int = 0
    largest: float = 0.0


def cut_trials(model: nn.Module, groups: Groups, sample: Batch, rounding: float) -> dict[str, Trial]:
    """Group key -> how its cuts did: all groups at once, and one by one only to tell which of them is to blame.

    Args:
        model: the model, frozen; unchanged.
        groups: the groups to cut, with the model's layers.
        sample: what to run masked and cut models on.
        rounding: the largest difference, as a share, between two ways to compute the same.
    """
    together = _trial(model, groups, sample, rounding)
    if together.problem is None and together.least == 0:
        return {group.key: together for group in groups}
    alone = {group.key: _trial(model, replace(groups, members=(group,)), sample, rounding) for group in groups}
    sound = replace(groups, members=tuple(group for group in groups if alone[group.key].problem is None))
    if together.problem is not None and len(sound):
        if len(sound) < len(groups):  # is what is left right together?
            together = _trial(model, sound, sample, rounding)
        if together.problem is not None:
            problem = f"alone it can be cut, but together with all other groups it cannot: {together.problem}"
            alone |= {group.key: replace(alone[group.key], problem=problem) for group in sound}
    return alone


def without_effect(model: nn.Module, groups: Groups, sample: Batch, dense: Observation) -> set[str]:
    """Keys of the groups whose masks change nothing of what their layer returns.

    Args:
        model: the model, frozen; unchanged.
        groups: its groups.
        sample: what to run it on.
        dense: what it was seen to do with the sample; every layer reads what it read there.
    """
    found: set[str] = set()
    if not all(dense.calls.get(name) and name in dense.states for name in groups.layers):
        return found  # nothing can be fed to them
    for role in dict.fromkeys(group.role for group in groups):
        members = groups.of_role(role)
        masks = {group.key: torch.zeros(group.units) for group in members}
        with masked(model, members, masks), fed(model, groups, dense.calls):
            states = states_of(model, replace(groups, members=()), sample)
        found |= {group.key for group in members if difference(states[group.layer], dense.states[group.layer]) == 0}
    return found


def _trial(model: nn.Module, groups: Groups, sample: Batch, rounding: float) -> Trial:
    copied = _lean_copy(model)
    left, largest = groups, 0.0
    written = {part.tensor.rpartition(".")[0] for group in groups for part in group.cut.writes}
    # What these write are units themselves.
    narrowed = {name for name, path in consumers_of(groups).items() if path in written}
    for what, masks, further in _masks(groups):
        with masked(model, groups, masks):
            expected = states_of(model, groups, sample)
        try:
            rewrite(copied, left, further)
            found = states_of(copied, left, sample)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a forward may raise that cannot deal with it
            raise_interruption(error)
            problem = f"with {what} cut, the model does not run ({type(error).__name__}: {error}): {_ROW}"
            return _ended(what, problem, largest)
        # A layer may return channels that are units: then it returns fewer, which the layers after it and the outputs
        # are to make the same of.
        narrowed |= {name for name in groups.layers if name in found and found[name].shape != expected[name].shape}
        off = {state: share for state, share in differences(found, expected).items() if state not in narrowed}
        if rounding < max(off.values(), default=0.0) <= _ADDED_UP * rounding:
            with masked(model, groups, masks):
                whole = observe(model, groups, sample)
            apart = _layer_by_layer(copied, left, whole, sample)
            off = {state: share for state, share in apart.items() if state not in narrowed} or off
        for state, share in off.items():
            if share > rounding:
                problem = (
                    f"with {what} cut, {state} is {share:.2g} of its size off what it is with them masked (rounding: "
                    f"{rounding:.0e}): {_ROW}{_ROUGH if rounding >= _MUCH else ''}"
                )
                return _ended(what, problem, largest)
        largest = max(largest, *off.values())
        left = replace(left, members=tuple(groups_after(left, further)))
    return Trial(largest=largest)


def _layer_by_layer(copied: nn.Module, left: Groups, expected: Observation, sample: Batch) -> dict[str, float]:
    """How far off a cut model is if every layer reads what it reads in the masked one: rounding does not add up then.

    Args:
        copied: the cut model.
        left: its groups.
        expected: what the masked model was seen to do.
        sample: what it was run on.

    Returns:
        State -> difference; nothing if not all layers can be given what to read.
    """
    if not all(expected.calls.get(name) for name in left.layers):
        return {}
    with fed(copied, left, expected.calls):
        return differences(states_of(copied, left, sample), expected.states)


def _ended(what: str, problem: str, largest: float) -> Trial:
    """A group that cannot lose its last unit can be cut; see `GroupProof.least`."""
    return Trial(least=1, largest=largest) if what == _NONE else Trial(problem, least=1, largest=largest)


def _masks(groups: Groups) -> Iterator[tuple[str, dict[str, Tensor], dict[str, Tensor]]]:
    """What is cut, masks of the whole groups, and of what the masks before have left of them."""
    before = {group.key: torch.ones(group.units, dtype=torch.bool) for group in groups}
    whole = {group.key for group in every_second(groups)}
    for what in (*([_SOME] if whole else []), _HALF, _ONE, _NONE):
        masks = {
            group.key: before[group.key] if what == _SOME and group.key in whole else _mask(group, what)
            for group in groups
        }
        yield what, masks, {key: mask[before[key]] for key, mask in masks.items()}
        before = masks


def _mask(group: Group, what: str) -> Tensor:
    half = group.every_other().view(group.parts, -1)
    most = {_SOME: group.units, _HALF: group.units, _ONE: max(1, group.least), _NONE: group.least}[what]
    last = half.flip(1).cumsum(1).flip(1) <= -(-most // group.parts)  # the last of every second one
    return (half & last).flatten()


def _lean_copy(model: nn.Module) -> nn.Module:
    """A copy to cut, whose parameters are others that hold the same numbers, and take no memory until they are cut."""
    memo: Mapping = {id(each): nn.Parameter(each.detach(), requires_grad=False) for each in model.parameters()}
    return copy.deepcopy(model, memo)
