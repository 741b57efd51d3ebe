"""What a refit takes for granted: layers run one by one make the whole pass, and each sublayer adds to the stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..architectures.group import Group, Groups, stack_of
from ..passes.starts import Start
from ..passes.walk import Walk
from .observation import Observation, difference

_ROW = "its row is wrong about pre_norm, stream, scale or normed_output, or it is built otherwise"


@torch.no_grad()
def refit_problems(
    model: nn.Module, groups: Groups, odd: Mapping[str, str], dense: Observation, rounding: float
) -> dict[str, str]:
    """Group key -> why it cannot be refitted; none for those that can.

    Args:
        model: the model, frozen; unchanged.
        groups: its groups.
        odd: groups whose linears do not run as they should, by key: what is said of them; see `running_problems`.
        dense: what a pass was seen to do.
        rounding: the largest difference, as a share, between two ways to compute the same.
    """
    problems = {group.key: _inputs_problem(group, dense) for group in groups if group.key not in odd}
    for stack in dict.fromkeys(map(stack_of, groups.layers)):
        layers = {name: path for name, path in groups.layers.items() if stack_of(name) == stack}
        members = [group for group in groups if stack_of(group.layer) == stack]
        strange = next((group.key for group in members if group.key in odd), None)
        if strange is None:
            found, blocked = _walked(model, layers, members, dense, rounding)
        else:
            found, blocked = {}, f"a refit takes all that it walks through to run once, and {strange} does not"
        for group in members:
            problems[group.key] = problems.get(group.key) or blocked or found.get(group.key)
    return {key: problem for key, problem in problems.items() if problem}


def _inputs_problem(group: Group, dense: Observation) -> str | None:
    """Why what its linears read and write cannot make a regression."""
    first, *others = group.producers
    for other in others:
        if difference(dense.reads[other.path], dense.reads[first.path]) > 0:
            return (
                f"its producers {first.path} and {other.path} read different inputs, as in cross-attention, and a "
                "refit corrects all of them for what the first reads"
            )
    return None


def _walked(
    model: nn.Module, layers: Mapping[str, str], groups: list[Group], dense: Observation, rounding: float
) -> tuple[dict[str, str], str | None]:
    """Problems of single groups of a stack, and one of all of them, `None` if its layers can be walked."""
    names = list(layers)
    for name, path in layers.items():
        if dense.runs[path] != 1:
            return {}, f"{name} ({path}) runs {_times(dense.runs[path])} in a pass, and a walk takes every layer once"
        if dense.calls[name] is None or name not in dense.states:
            form = "take hidden_states, first or by that name, and return them, first or alone"
            return {}, f"{name} ({path}) does not {form}"
    hidden, calls = ({name: dense.calls[name][part] for name in names} for part in (0, 1))
    walk = Walk(Start({}, {stack_of(names[0]): hidden[names[0]]}, calls, {}), stack_of(names[0]))
    problems: dict[str, str] = {}
    for before, name in zip([None, *names], names, strict=False):
        off = difference(walk.hidden, hidden[name])
        if off > rounding:
            return problems, (
                f"{name} does not read what {before} returns ({off:.2g} of its size off): something stands between the "
                "layers, and a walk from one to the next would miss it"
            )
        members = [group for group in groups if group.layer == name]
        try:
            with _read_in(model.get_submodule(layers[name])) as read:
                walk.enter(name, model, layers[name], members)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a layer may raise that is called by itself
            return problems, f"{name} cannot be run by itself ({type(error).__name__}: {error})"
        off = difference(walk.hidden, dense.states[name])
        if off > rounding:
            return problems, f"{name} run by itself returns something else than in a pass ({off:.2g} of its size off)"
        for group in members:
            problem = _target_problem(group, walk, [*read, walk.hidden], rounding)
            problems |= {group.key: problem} if problem else {}
    return problems, None


def _target_problem(group: Group, walk: Walk, read: list[Tensor], rounding: float) -> str | None:
    """Why the stream that a refit aims at is not that of the model, as far as there is one to aim at."""
    if group.residual.windowed or group.residual.normed_output:
        return None
    target = walk.targets[group.key]
    off = min((difference(target, each) for each in read), default=float("inf"))
    if off <= rounding:
        return None
    return (
        f"the stream after it, as a refit computes it, is read by no module of {group.layer}, nor what that returns "
        f"({'none has its shape' if off == float('inf') else f'the nearest is {off:.2g} of its size off'}): {_ROW}"
    )


@contextmanager
def _read_in(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the modules inside a layer read."""
    read: list[Tensor] = []

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        read.extend(each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))

    with ExitStack() as stack:
        for module in layer.modules():
            if module is not layer:
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield read


def _times(count: int) -> str:
    return "not once" if count == 0 else f"{count} times"
