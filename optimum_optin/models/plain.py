"""Plain modules: what must hold of one to be pruned, and its example inputs by the names of its forward's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .wrappers import wrapper_remedy

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_module(module: Any) -> None:
    """Raise if this is no module that can be pruned, as far as its class and its weights tell.

    Raises:
        TypeError: it is no module, or a wrapper around one; says how to get at the module in it.
        ValueError: it has no weights, or some that hold nothing; or a batch norm without statistics of its own.
    """
    if (remedy := wrapper_remedy(module)) is not None or not isinstance(module, nn.Module):
        name = module.__name__ if isinstance(module, type) else type(module).__name__
        raise TypeError(f"module must be a torch.nn.Module, got {name}: {remedy or 'give the module itself'}.")
    kind = type(module).__name__
    weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if not any(each.is_floating_point() for each in module.parameters()):
        raise ValueError(f"{kind} has no weights: there is nothing to prune.")
    for name, each in weights.items():
        if each.is_meta:
            raise ValueError(f"{kind}.{name} is on the meta device, without values: load the module's weights first.")
    for path, each in module.named_modules():
        if isinstance(each, _BatchNorm) and each.running_mean is None:
            raise ValueError(
                f"{path or kind} is a {type(each).__name__} without running statistics (track_running_stats=False): "
                "what it makes of a sample depends on the others in its batch, so that nothing can be proved of it. "
                "Give it statistics (track_running_stats=True, and a few batches in training mode)."
            )


def named_inputs(module: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """Example inputs by the names of the forward's arguments, in their order.

    Args:
        module: the module.
        inputs: a tensor, for the first argument; a tuple or list of tensors, for the first arguments; or a dict.
            All of them have the samples of a batch as first dimension.

    Raises:
        ValueError: an input that the forward does not take, that is no tensor, or whose first dimension is not the
            batch; or inputs that are constant, by which nothing can be told.
    """
    kind, signature = type(module).__name__, inspect.signature(module.forward).parameters
    places = [name for name, each in signature.items() if each.kind not in (*_VARIADIC, inspect.Parameter.KEYWORD_ONLY)]
    takes = f"its forward takes {', '.join(map(str, signature.values())) or 'nothing'}"
    if isinstance(inputs, Mapping):
        found = dict(inputs)
        free = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in signature.values())
        known = [name for name in signature if signature[name].kind not in _VARIADIC]
        if unknown := [name for name in found if name not in known and not free]:
            raise ValueError(
                f"example_inputs hold {', '.join(map(repr, unknown))}, which {kind} does not take: {takes}."
            )
        found = {name: found[name] for name in (*known, *found) if name in found}
    else:
        given = list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]
        if len(given) > len(places):
            raise ValueError(
                f"example_inputs are {len(given)}, which {kind} has no names for: {takes}. Give a dict, or a module "
                "whose forward names its inputs."
            )
        found = dict(zip(places, given, strict=False))
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            what = "a tensor of no dimensions" if isinstance(value, Tensor) else f"{type(value).__name__} {value!r:.80}"
            raise ValueError(
                f"example_inputs must be tensors with the batch as first dimension, {name!r} is {what}: what is no "
                "tensor of samples belongs into the module, e.g. as a default of its forward."
            )
    sizes = {name: len(value) for name, value in found.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(
            "example_inputs must all have the same number of samples, at least one, as first dimension, got "
            f"{', '.join(f'{name} {tuple(value.shape)}' for name, value in found.items()) or 'none'}."
        )
    if all((value[:1] == value.flatten()[0]).all() for value in found.values()):
        raise ValueError(
            f"example_inputs are constant ({', '.join(found)}): by them, what reads one part of an input cannot be "
            "told from what reads another. Give a real sample, or torch.randn(...)."
        )
    return found
