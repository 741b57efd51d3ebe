"""How a group stands in a pass: its linears run once, on what a mask can be put on; its counters count its units."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..architectures.group import CHANNELS, Group, Groups, attribute
from ..keeping.interruption import raise_interruption
from ..running.batch import Batch
from ..running.experts import is_packed, written_by_experts
from ..running.linears import CONVOLUTIONS, rows_read, rows_written, weight_of
from .observation import Observation, difference, linears_of, observe


def counter_problems(model: nn.Module, groups: Groups) -> dict[str, str]:
    """Group key -> which of its counters does not count what is there; none where all do.

    Args:
        model: the model.
        groups: its groups.
    """
    found = {}
    for group in groups:
        for path, amount in group.cut.counters.items():
            count = group.units * amount
            held = None
            with suppress(AttributeError):  # its row may name what is not there
                held = attribute(model, path)
            if held != count:
                said = f"{group.units} units, {amount} for each: {count}"
                found.setdefault(group.key, f"its counter {path} is {held!r}, where its row says {said}")
    return found


def running_problems(
    model: nn.Module, groups: Groups, sample: Batch, dense: Observation, rounding: float
) -> dict[str, str]:
    """Group key -> why its units cannot be scored, for how layer and linears run; none where they can.

    Args:
        model: the model, frozen.
        groups: its groups.
        sample: its inputs.
        dense: what a pass of the sample was seen to do.
        rounding: the largest difference, as a share, between two ways to compute the same.
    """
    flat = _flattened(model, groups, sample, dense, rounding)
    found = {
        group.key: _problem(model, group, groups.layers[group.layer], dense, flat)
        or _unlike_weights(model, group, dense, rounding)
        for group in groups
    }
    return {key: problem for key, problem in found.items() if problem}


def _flattened(model: nn.Module, groups: Groups, sample: Batch, dense: Observation, rounding: float) -> frozenset[str]:
    """Paths of linears and experts that read all tokens of a layer as rows, those of a sample after another's.

    The sample runs twice side by side, and the first rows must stay the same: if the rows of a token followed each
    other, each of the first tokens would be there twice.
    """
    tokens: dict[str, int] = {}
    for group in groups:
        hidden, _ = dense.calls.get(group.layer) or (None, None)
        if not isinstance(hidden, Tensor) or hidden.dim() != 3 or len(hidden) != 1:
            continue
        for path in linears_of(group):
            read = dense.reads.get(path)
            if read is not None and read.dim() == 2 and len(read) == hidden.shape[1]:
                tokens[path] = len(read)
    if not tokens:
        return frozenset()
    try:
        seen = observe(model, groups, {name: torch.cat([value, value]) for name, value in sample.items()}).reads
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a forward may raise: it may take one sample at a time
        raise_interruption(error)
        return frozenset()
    return frozenset(
        path
        for path, count in tokens.items()
        if seen.get(path) is not None
        and len(seen[path]) == 2 * count
        and difference(seen[path][:count], dense.reads[path]) <= rounding
    )


def _problem(model: nn.Module, group: Group, layer: str, dense: Observation, flat: Collection[str]) -> str | None:
    if not group.consumers:
        names = " and ".join(part.tensor for part in group.cut.reads)
        return f"its units are read by {names}, which are not all linears or convolutions that read them alone"
    for path in (layer, *linears_of(group)):
        if dense.runs[path] == 0:
            return f"{path} does not run for this sample: name the module that does, or give a sample for which it does"
    # Producers may run for other inputs as well, such as relative positions.
    for path in (layer, *(each.path for each in group.consumers)):
        if dense.runs[path] > 1:
            return (
                f"{path} runs {dense.runs[path]} times in a pass: its units would be scored, counted and refitted as "
                "if it ran once. What several layers or steps share cannot be pruned yet"
            )
    for path in linears_of(group):
        read, module = dense.reads[path], model.get_submodule(path)
        least = 2 if group.role.endswith(CHANNELS) else 3  # a linear may read channels that were pooled
        dims = 2 + len(module.kernel_size) if isinstance(module, CONVOLUTIONS) else least
        if read is None or (read.dim() < dims and path not in flat):
            what = "nothing by place" if read is None else f"a tensor of shape {tuple(read.shape)}"
            return (
                f"{path} reads {what}, where one of {dims} dimensions or more is expected, (batch, tokens, features) "
                "or (batch, channels, ...), or all tokens of its layer as rows, sample by sample: let its layer call "
                "it with one"
            )
    return None


def _unlike_weights(model: nn.Module, group: Group, dense: Observation, rounding: float) -> str | None:
    """Why what a group's linears return does not follow from their weights; `None` if it does."""
    for path in linears_of(group):
        read, module = dense.reads[path], model.get_submodule(path)
        if is_packed(module):
            if (off := _off_by_experts(module, dense.given[path])) > rounding:
                return (
                    f"{path} is a {type(module).__name__}, which does more than to add what its experts make of tokens "
                    f"by the router's weights (it is {off:.2g} of its size off): scores and refit go by that"
                )
        elif (off := _off_by(module, read)) > rounding:
            return (
                f"{path} is a {type(module).__name__}, whose forward does more to what it reads than its weight, "
                f"stride and padding say (it is {off:.2g} of its size off): scores and refit go by these. Pad outside "
                "of it, or let it have the weight that it works with"
            )
    return None


@torch.no_grad()
def _off_by_experts(module: nn.Module, given: tuple) -> float:
    """How far what experts return is from the sum of what each makes of its tokens, as a share."""
    try:
        return difference(written_by_experts(module, given), module(*given))
    except (RuntimeError, IndexError, ValueError, TypeError):  # it is called with something else
        return float("inf")


@torch.no_grad()
def _off_by(module: nn.Module, read: Tensor) -> float:
    """How far what a module of a class of its own returns is from the product of its weight and its rows, as a share.

    Convolutions may pad by themselves, and compute their weight from another.
    """
    kind = next((each for each in (nn.Linear, Conv1D, *CONVOLUTIONS) if isinstance(module, each)), type(module))
    if type(module).forward is kind.forward:
        return 0.0
    written = rows_written(module, module(read))
    expected = rows_read(module, read) @ weight_of(module).T
    return difference(written, expected if module.bias is None else expected + module.bias)
