"""Prepared models: others have put a `forward` on the object, in the place of its class's.

Saving keeps only the weights, so the model that is loaded again computes something else. And a copy of the model keeps
that function, which may well run the original.
"""

from __future__ import annotations

import copy
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from ..keeping.guards import Guard, unguard
from ..models.examples import example_of, note_example


def copy_of(model: nn.Module, *, apart: bool = True) -> nn.Module:
    """A copy of a model that runs the forward of its class; the model must have passed `check_prepared`.

    Args:
        model: the model.
        apart: whether the copy has weights of its own. Otherwise it shares all parameters that a cut does not replace
            by smaller ones, and takes no memory for them: for work that leaves weights as they are, or `set_apart`.
    """
    copied = copy.deepcopy(model, {} if apart else {id(each): each for each in model.parameters()})
    unguard(copied)
    unprepare(copied)
    if (example := example_of(model)) is not None:
        note_example(copied, example)
    return copied


def set_apart(model: nn.Module, other: nn.Module, *, tables: bool = True) -> None:
    """Give a copy its own parameters, in place, where it shares them; tied weights stay tied.

    Args:
        model: the copy.
        other: what it is a copy of.
        tables: whether those of embeddings as well, a large part of a small language model: a refit leaves them as
            they are.
    """
    left = set() if tables else {id(each.weight) for each in other.modules() if isinstance(each, nn.Embedding)}
    shared = {id(each) for each in other.parameters()} - left
    own: dict[int, Any] = {}  # what was copied is not copied again
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in shared:
                module._parameters[name] = copy.deepcopy(parameter, own)


def unprepare(model: nn.Module) -> None:
    """Let every module run its class's own `forward` again, as far as we know how, in place; returns nothing.

    The wrappers of Accelerate for mixed precision (`Accelerator.prepare`, `Trainer`) and of torch.compile are removed.
    Accelerate's hooks stay, as a model spread over devices needs them. The `to` and `cuda` that it puts on such a model
    to warn do not: a copy's would move the original.
    """
    for module in model.modules():
        attributes = vars(module)
        forward = _unwrapped(module)
        attributes.pop("_original_forward", None)  # where Accelerate keeps the forward to go back to
        if (compiled := attributes.get("_compiled_call_impl")) is not None:
            attributes["_compiled_call_impl"] = compiled.bare() if isinstance(compiled, Guard) else None
        if _is_own(module, forward):
            attributes.pop("forward", None)
        else:
            attributes["forward"] = forward
        for name in [name for name, each in attributes.items() if _is_around_own(module, name, each)]:
            del attributes[name]


def check_prepared(model: nn.Module) -> None:
    """Raise if a module runs something that is not saved with it.

    Raises:
        ValueError: names the module.
    """
    for path, module in model.named_modules():
        forward = _unwrapped(module)
        own = _is_own(module, forward) and getattr(forward, "__self__", module) is module
        if not own and not hasattr(module, "_hf_hook"):
            where = f"{type(model).__name__}.{path}" if path else type(model).__name__
            by = getattr(forward, "__qualname__", forward)
            raise ValueError(
                f"the forward of {where} was replaced on the object, by {by!r:.80}: the model that is saved would "
                "compute something else. Write a subclass with that forward, or take it off (del module.forward) and "
                "put it on the pruned model."
            )


def _unwrapped(module: nn.Module) -> Any:
    """The module's `forward`, without what is known to be around it."""
    forward = vars(module).get("_original_forward") or vars(module).get("forward")
    while hasattr(forward, "_torchdynamo_orig_callable"):
        forward = forward._torchdynamo_orig_callable
    return forward


def _is_own(module: nn.Module, forward: Any) -> bool:
    """Whether a `forward` on the object is the class's. In a copy, it may be bound to the original."""
    if forward is None:
        return True
    # Accelerate takes off what decorates the class's own, too, when it unwraps a model.
    own = type(module).forward
    chain = [own]
    while hasattr(own, "__wrapped__"):
        own = own.__wrapped__
        chain.append(own)
    return isinstance(forward, MethodType) and forward.__func__ in chain


def _is_around_own(module: nn.Module, name: str, value: Any) -> bool:
    """Whether an attribute is a function around the method that it hides. Functions are not copied with an object."""
    method = getattr(value, "__wrapped__", None) if isinstance(value, FunctionType) else None
    return isinstance(method, MethodType) and method.__func__ is getattr(type(module), name, None)
