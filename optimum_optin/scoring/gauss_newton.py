"""Sketched Gauss-Newton scoring: all units of all layers from a few backward passes.

The trajectory's loss is zero and stationary at mask = 1, so to second order removing unit u costs
||J_u||^2, where J_u is the derivative of the stacked features by u's mask. For random probes r,
E[(r . J_u)^2] = ||J_u||^2, and one backward pass gives r . J_u for every unit (docs/source/concepts/method.mdx).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.group import Groups
from ..comparing.losses import probe_manifold, probe_output
from ..config import OptinConfig
from ..discovery.find import groups_of
from ..editing.masking import gradients, is_masked_by_weight, masked
from ..passes.calibration import Calibration, calibration_of
from ..passes.hooks import recorded
from ..passes.outputs import compared_output
from ..passes.trajectory import draw_rows, trajectory_features
from ..running.batch import samples_in
from ..running.processes import my_share
from ..running.randomness import generators
from ..stages.resuming import resumed
from .registry import Terms, Totals, register_scorer


@register_scorer("gauss_newton")
@torch.inference_mode(False)
@torch.enable_grad()
def score_gauss_newton(model: nn.Module, groups: Groups, calibration: Calibration, config: OptinConfig) -> Terms:
    """Estimates of `score_exact`'s terms; probe k sees batch k mod len(calibration). See `register_scorer`."""
    groups, calibration = groups_of(model, groups), calibration_of(model, calibration)
    streams = generators(config.seed, len(calibration) + config.probes)
    # The same rows as the exact scorer draws: both estimate one quantity.
    rows = [draw_rows(real, config.rows, stream) for real, stream in zip(calibration.real, streams, strict=False)]
    totals = Totals()
    for probe in resumed(my_share(config.probes), "Gauss-Newton scores", "probe", name="gauss-newton", sums=totals):
        generator = streams[len(calibration) + probe]
        index = probe % len(calibration)
        batch, compared = calibration.batches[index], rows[index]
        size, device = samples_in(batch), next(iter(batch.values())).device
        sizes = {group.key: 1 if is_masked_by_weight(model, group) else size for group in groups}
        masks = {
            group.key: torch.ones(sizes[group.key], group.units, device=device, requires_grad=True) for group in groups
        }
        with masked(model, groups, masks), recorded(model, groups.layers) as outputs:
            final = compared_output(model, batch, compared)
        features = trajectory_features(outputs, compared, calibration.real[index], groups.maps)
        moves = [probe_manifold(feature, generator) for feature in features.values()]
        functional, by_output = sum(move.to(moves[0].device) for move in moves), {}
        if final is not None:
            diverging = probe_output(final.values, config.temperature, final.kind, generator)
            by_output = _by_group(diverging, masks, keep_graph=True)
        slopes = _by_group(functional, masks, beside=list(by_output.values()))
        # The Gram matrix couples the samples of a batch: a unit is one mask for all of them.
        for key, slope in slopes.items():
            totals.add("trajectory", key, slope.sum(0).square())
        for key, slope in by_output.items():  # outputs of different samples are independent: each is a probe of its own
            totals.add("output", key, slope.square().sum(0))
    return totals.means(config.probes)


def _by_group(functional: Tensor, masks: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    return dict(zip(masks, gradients(functional, list(masks.values()), list(masks), **options), strict=True))
