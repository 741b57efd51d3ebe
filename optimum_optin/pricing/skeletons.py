"""Skeletons: copies of a model whose tensors have shapes only, so that a pass costs no memory and no products."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.utils import logging

from ..keeping.interruption import raise_interruption
from ..running.batch import Batch
from ..running.prepared import copy_of

logger = logging.get_logger(__name__)
Found = TypeVar("Found")


def by_shapes(
    model: nn.Module,
    batch: Batch,
    measure: Callable[[nn.Module, Batch, AbstractContextManager], Found],
    shape: Callable[[Tensor, FakeTensorMode], Tensor] | None = None,
) -> Found:
    """What is measured of a skeleton, or of a copy with weights if the model's forward looks at what tensors hold.

    Args:
        model: the model; unchanged.
        batch: its inputs.
        measure: takes a copy that it may change, its inputs, and the context to run that copy in.
        shape: see `skeleton`.
    """
    try:
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        inputs = {name: (shape or shape_of)(value, fake) for name, value in batch.items()}
        with caches_emptied(model):
            return measure(skeleton(model, fake, shape), inputs, fake)
    except Exception as error:
        raise_interruption(error)
        logger.debug(f"{type(model).__name__} is measured on a copy with weights, which it needs to run: {error}")
        return measure(copy_of(model, apart=False), batch, nullcontext())


def skeleton(model: nn.Module, fake: FakeTensorMode, shape: Callable[..., Tensor] | None = None) -> nn.Module:
    """A copy of a model whose parameters and buffers have shapes only, and which runs the forward of its class.

    Args:
        model: the model.
        fake: whose tensors it has.
        shape: makes a tensor of the same shape; `None` for `shape_of`.
    """
    tensors = (*model.parameters(), *model.buffers())
    memo: dict[int, Any] = {id(tensor): (shape or shape_of)(tensor, fake) for tensor in tensors}
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        vars(module).pop("forward", None)  # Accelerate's moves tensors between devices
    return copied


@contextmanager
def caches_emptied(model: nn.Module) -> Iterator[None]:
    """Afterwards, nothing is in the caches of functions of a model's classes, which all models of the process share.

    Transformers keeps BEiT's places in a window there; those that a pass without values puts there are none.
    """
    try:
        yield
    finally:
        for kind in {kind for module in model.modules() for kind in type(module).__mro__}:
            for member in vars(kind).values():
                function = getattr(member, "__func__", member)  # of a static method
                inside = inspect.getclosurevars(function).nonlocals.values() if inspect.isfunction(function) else ()
                for each in (function, *inside):
                    if callable(getattr(each, "cache_clear", None)):
                        each.cache_clear()


def shape_of(tensor: Tensor, fake: FakeTensorMode) -> Tensor:
    """A tensor of the same shape that holds nothing; transformers takes it for a tracer's and does not look inside."""
    return fake.from_tensor(tensor.detach().to("meta"))


def placed_shape_of(tensor: Tensor, fake: FakeTensorMode) -> Tensor:
    """The same, said to be on the tensor's own device, so that the kernels of that device are chosen."""
    return fake.from_tensor(tensor.detach())
