"""What one pass of a model leaves behind: how often modules ran, what they read, and all that is compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.group import Group, Groups
from ..passes.trajectory import hidden_states
from ..running.batch import Batch
from ..running.forward import run_model
from ..running.memory import at_least_single

States = dict[str, Tensor]
"""What is compared, in order of execution: what every consumer (by its group's key) and every layer returned, and the
model's outputs by name; floating-point tensors."""

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass
class Call:
    """The arguments that a layer was called with, but for its hidden states."""

    args: tuple
    kwargs: dict[str, Any]

    @classmethod
    def split(cls, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
        """The hidden states that a layer is called with, and the rest."""
        if args:
            return args[0], cls(args[1:], kwargs)
        others = dict(kwargs)
        return others.pop("hidden_states"), cls(args, others)


@dataclass(frozen=True)
class Observation:
    """What one pass left behind.

    Args:
        states: see `States`.
        runs: path of a layer, producer or consumer -> how often it ran.
        reads: path of a producer or consumer -> what it read last; `None` if no tensor came by place.
        given: path of a producer or consumer -> all that it was called with by place, the last time.
        calls: layer -> the hidden states that it was called with, and the rest of the call; `None` if it got none.
    """

    states: States
    runs: Counter[str] = field(default_factory=Counter)
    reads: dict[str, Tensor | None] = field(default_factory=dict)
    given: dict[str, tuple] = field(default_factory=dict)
    calls: dict[str, tuple[Tensor, Call] | None] = field(default_factory=dict)


def observe(model: nn.Module, groups: Groups, sample: Batch) -> Observation:
    """Run a model, frozen and whole, on a sample; see `Observation`."""
    seen = Observation({})
    paths = {path for group in groups for path in linears_of(group)}
    hooks = {path: _reading_hook(seen, path) for path in paths}
    with ExitStack() as stack:
        for path, hook in hooks.items():
            module = model.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(hook, prepend=True).remove)
        for name, path in groups.layers.items():
            module, hook = model.get_submodule(path), _calling_hook(seen, name, path)
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True).remove)
        seen.states.update(states_of(model, groups, sample))
    return seen


def linears_of(group: Group) -> list[str]:
    """Paths of a group's producers and consumer."""
    return [each.path for each in (*group.producers, *group.consumers)]


@torch.no_grad()
def states_of(model: nn.Module, groups: Groups, sample: Batch) -> States:
    """Run a model, or what was cut of it, on a sample; see `States`."""
    states: States = {}
    with ExitStack() as stack:
        for name, path in (consumers_of(groups) | dict(groups.layers)).items():
            hook = model.get_submodule(path).register_forward_hook(_returning_hook(states, name))
            stack.callback(hook.remove)
        outputs = run_model(model, sample)
    for name, value in outputs.items():
        if not name.endswith("attentions"):  # which a layer without heads has none of
            states.update(_tensors_in(value, name))
    return states


def consumers_of(groups: Iterable[Group]) -> dict[str, str]:
    """Name of what each consumer writes -> its path: the group's key and, of several, which it is."""
    named = {}
    for group in groups:
        alone = len(group.consumers) == 1
        named |= {group.key if alone else f"{group.key} at {each.path}": each.path for each in group.consumers}
    return named


@contextmanager
def fed(model: nn.Module, groups: Groups, calls: Mapping[str, tuple[Tensor, Call]]) -> Iterator[None]:
    """Let every layer read what it read in an earlier pass, whatever comes before it; undone on exit."""
    with ExitStack() as stack:
        for name, path in groups.layers.items():
            hook = _feeding_hook(calls[name][0])
            stack.callback(model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def difference(found: Tensor | None, expected: Tensor) -> float:
    """How far off a tensor is, as a share of what it should be; infinite for one of another shape or none."""
    if found is None or found.shape != expected.shape:
        return float("inf")
    if not expected.numel() or found is expected:
        return 0.0
    found, expected = (at_least_single(each.to(expected.device)) for each in (found, expected))
    off, size = float((found - expected).norm()), float(expected.norm())
    if off == 0:
        return 0.0
    share = off / max(size, torch.finfo(torch.float32).tiny)
    return float("inf") if math.isnan(share) else share


def differences(found: States, expected: States) -> dict[str, float]:
    """State -> `difference`, in order of execution."""
    return {name: difference(found.get(name), value) for name, value in expected.items()}


def rounding_of(model: nn.Module) -> float:
    """What two ways to compute the same may differ by in the model's precision, as a share."""
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    least = max(_ROUNDING.get(kind, 1e-5) for kind in kinds)
    return max(least, _ROUNDING[torch.float16]) if _multiplies_roughly(model) else least


def _multiplies_roughly(model: nn.Module) -> bool:
    """Whether float32 numbers are multiplied with 10 bits of each (TF32)."""
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    return on_gpu and torch.backends.cuda.matmul.fp32_precision == "tf32"


def _reading_hook(seen: Observation, path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple) -> None:
        seen.runs[path] += 1
        seen.reads[path] = args[0] if args and isinstance(args[0], Tensor) else None
        seen.given[path] = args

    return hook


def _calling_hook(seen: Observation, name: str, path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.runs[path] += 1
        given = args or "hidden_states" in kwargs
        seen.calls[name] = Call.split(args, kwargs) if given else None

    return hook


def _returning_hook(states: States, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        states.pop(name, None)  # the last run of several
        states.update({name: hidden} if isinstance(hidden := hidden_states(output), Tensor) else {})

    return hook


def _feeding_hook(hidden: Tensor) -> Callable[..., tuple[tuple, dict[str, Any]]]:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    return hook


def _tensors_in(value: Any, name: str) -> States:
    if isinstance(value, Tensor):
        return {name: value} if value.is_floating_point() else {}
    parts = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (tuple, list)) else ()
    )
    return {key: tensor for place, part in parts for key, tensor in _tensors_in(part, f"{name}.{place}").items()}
