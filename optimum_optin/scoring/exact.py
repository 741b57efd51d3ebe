"""Exhaustive scoring (OPTIN, Algorithm 1): one masked forward pass per unit.

This is the oracle of the other scorers. Layers before the masked one return their recorded outputs, so a unit of layer
i costs only the layers from i on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..architectures.group import Group, Groups
from ..comparing.losses import manifold_distance, output_distance
from ..config import OptinConfig
from ..discovery.find import groups_of
from ..editing.masking import masked
from ..passes.calibration import Calibration, calibration_of
from ..passes.hooks import recorded, replayed
from ..passes.outputs import compared_output
from ..passes.trajectory import draw_rows, trajectory_features
from ..running.batch import Batch
from ..running.processes import my_share
from ..running.randomness import generators
from ..stages.resuming import resumed
from .registry import Terms, Totals, register_scorer


@register_scorer("exact")
@torch.no_grad()
def score_exact(model: nn.Module, groups: Groups, calibration: Calibration, config: OptinConfig) -> Terms:
    """I_ij of every unit, term by term, averaged over the batches; see `register_scorer`."""
    groups, calibration = groups_of(model, groups), calibration_of(model, calibration)
    layers = groups.layers
    totals = Totals()
    streams = generators(config.seed, len(calibration))
    steps = [
        (index, group, unit) for index in my_share(len(calibration)) for group in groups for unit in range(group.units)
    ]
    recorded_of = None  # the batch that the dense outputs are of
    for index, group, unit in resumed(steps, "exact scores", "unit", name="exact", sums=totals):
        batch, real = calibration.batches[index], calibration.real[index]
        if recorded_of != index:
            rows = draw_rows(real, config.rows, streams[index])
            with recorded(model, layers) as dense_outputs:
                dense_final = compared_output(model, batch, rows)
            dense = trajectory_features(dense_outputs, rows, real, groups.maps)
            recorded_of = index
        # A layer before the group's own is not touched by its masks.
        later = list(layers)[list(layers).index(group.layer) :]
        prefix = {name: output for name, output in dense_outputs.items() if name not in later}
        with (
            replayed(model, layers, prefix),
            masked(model, [group], {group.key: _without(group.units, unit, batch)}),
            recorded(model, {name: layers[name] for name in later}) as outputs,
        ):
            final = compared_output(model, batch, rows)
        features = trajectory_features(outputs, rows, real, groups.maps)
        moved = sum(manifold_distance(features[name], dense[name]) for name in later)
        _add(totals.terms, "trajectory", group, unit, moved)
        if final is not None:
            diverged = output_distance(final.values, dense_final.values, config.temperature, final.kind)
            _add(totals.terms, "output", group, unit, diverged)
    return totals.means(len(calibration))


def _without(units: int, unit: int, batch: Batch) -> Tensor:
    mask = torch.ones(units, device=next(iter(batch.values())).device)
    mask[unit] = 0
    return mask


def _add(totals: Terms, term: str, group: Group, unit: int, value: Tensor) -> None:
    by_group = totals.setdefault(term, {})
    if group.key not in by_group:
        by_group[group.key] = torch.zeros(group.units, dtype=torch.float64, device=value.device)
    by_group[group.key][unit] += value
