"""Trial cuts: of several ways to spend a budget, take the one whose repaired model stays closest to the dense one.

Scores add up single removals, to second order, before the layers below are cut. What several removals do together, and
how much of it the refit takes back, shows only on a model that is cut and refitted: so each candidate is, on a part of
the calibration data, and its outputs are compared on samples that the refit has not seen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

from torch import nn

from .compensation import refit
from .divergence import measure_divergence
from .groups import Batch, Group, Masks
from .surgery import rewrite
from .walk import Start

STRENGTH = 1e-2  # of every regression: choosing it costs more than a comparison needs


def least_divergent(
    candidates: Sequence[Masks],
    dense: nn.Module,
    *,
    groups: Sequence[Group],
    starts: Sequence[Start],
    held_out: Sequence[Batch],
) -> int:
    """Index of the masks whose refitted model diverges least; the first of equal ones.

    Args:
        candidates: masks of one budget.
        dense: the model; unchanged.
        groups: its groups.
        starts: for the trial refits (`dense_passes`); none for no refit.
        held_out: calibration batches to compare outputs on.
    """
    models = [copy.deepcopy(dense) for _ in candidates]
    for pruned, masks in zip(models, candidates, strict=True):
        rewrite(pruned, groups, masks)
    if starts:
        refit(dense, models, starts, STRENGTH)
    distances = [each.distance for each in measure_divergence(dense, models, held_out)]
    return min(range(len(distances)), key=lambda index: (math.isnan(distances[index]), distances[index]))
