"""How a group stands in a pass: its linears run once, on what a mask can be put on; its counters count its units."""

from __future__ import annotations

from contextlib import suppress

from torch import nn

from ..architectures.group import CHANNELS, Group, Groups, attribute
from ..running.linears import CONVOLUTIONS
from .observation import Observation, linears_of


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


def running_problems(model: nn.Module, groups: Groups, dense: Observation) -> dict[str, str]:
    """Group key -> why its units cannot be scored, for how layer and linears run; none where they can.

    Args:
        model: the model.
        groups: its groups.
        dense: what a pass was seen to do.
    """
    found = {group.key: _problem(model, group, groups.layers[group.layer], dense) for group in groups}
    return {key: problem for key, problem in found.items() if problem}


def _problem(model: nn.Module, group: Group, layer: str, dense: Observation) -> str | None:
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
        if read is None or read.dim() < dims:
            what = "nothing by place" if read is None else f"a tensor of shape {tuple(read.shape)}"
            return (
                f"{path} reads {what}, where one of {dims} dimensions or more is expected, (batch, tokens, features) "
                "or (batch, channels, ...): let its layer call it with one"
            )
    return None
