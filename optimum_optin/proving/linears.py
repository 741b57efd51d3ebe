"""How the linears of a group run: once in a pass, and on what a mask can be put on."""

from __future__ import annotations

from ..architectures.group import Group, Groups
from .observation import Observation


def running_problems(groups: Groups, dense: Observation) -> dict[str, str]:
    """Group key -> why scores, costs and masks would be wrong for how its layer and linears run; none where they are not.

    Args:
        groups: the model's groups.
        dense: what a pass was seen to do.
    """
    found = {group.key: _problem(group, groups.layers[group.layer], dense) for group in groups}
    return {key: problem for key, problem in found.items() if problem}


def _problem(group: Group, layer: str, dense: Observation) -> str | None:
    for path in (layer, *(producer.path for producer in group.producers), group.consumer):
        if dense.runs[path] == 0:
            return f"{path} does not run for this sample: name the module that does, or give a sample for which it does"
        if dense.runs[path] > 1:
            return (
                f"{path} runs {dense.runs[path]} times in a pass: its units would be scored, refitted and counted as if "
                "it ran once. Layers that share their weights cannot be pruned yet"
            )
    for path in (*(producer.path for producer in group.producers), group.consumer):
        read = dense.reads[path]
        if read is None or read.dim() != 3:
            what = "nothing by place" if read is None else f"a tensor of shape {tuple(read.shape)}"
            return (
                f"{path} reads {what}, where one of shape (batch, tokens, features) is expected: let its layer call it "
                "with one"
            )
    return None
