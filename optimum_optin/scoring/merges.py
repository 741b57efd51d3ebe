"""Scores of merging: what merging tokens after a layer loses, in the terms that units are scored by.

A few numbers of pairs are merged after one layer at a time, and what follows is compared with the dense model's: the
features of all later layers, where a merged token stands in the place of each of its tokens, and the output. Between
the numbers that are tried, losses are taken as convex.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor, nn

from ..architectures.group import Groups
from ..comparing.losses import manifold_distance, output_distance
from ..config import OptinConfig
from ..inputs.tokens import TokenMasks
from ..media.vision import image_tokens, prefix_tokens
from ..merging.hooks import merging
from ..merging.matching import most_merges
from ..merging.schedule import TokenSchedule
from ..merging.stack import token_layers
from ..passes.calibration import Calibration
from ..passes.hooks import recorded, replayed
from ..passes.outputs import Output, compared_output
from ..passes.trajectory import Rows, draw_rows, trajectory_features
from ..running.batch import Batch
from ..running.processes import add_up, my_share
from ..running.randomness import generators
from ..stages.resuming import resumed
from ..stages.tensor_files import fill
from .registry import Terms

_BATCHES = 4  # losses of many samples are means already
_PARTS = 4  # numbers of pairs that are tried, in equal steps up to all


@torch.no_grad()
def score_merges(model: nn.Module, groups: Groups, calibration: Calibration, config: OptinConfig) -> Terms:
    """What each further pair of tokens loses that is merged after a layer.

    Args:
        model: the dense model, frozen.
        groups: its groups.
        calibration: its calibration, of images.
        config: rows, temperature and seed.

    Returns:
        Term -> layer -> loss of the first, second, ... pair, never falling, shape (all pairs,), float64. The last
        layer is left out: merging after it saves nothing.
    """
    layers = list(token_layers(model, groups))
    protected = prefix_tokens(model)
    batches, real = calibration.batches[:_BATCHES], calibration.real[:_BATCHES]
    most = most_merges(image_tokens(model, batches[0]), protected)
    tried = sorted({round(most * part / _PARTS) for part in range(1, _PARTS + 1)} - {0})
    streams = generators(config.seed, len(batches))
    schedules = [[TokenSchedule(protected, {layer: pairs}) for pairs in tried] for layer in layers[:-1]]
    first = draw_rows(real[0], 1, torch.Generator())
    has_output = compared_output(model, batches[0], first) is not None
    terms = ("trajectory", "output") if has_output else ("trajectory",)
    losses = torch.zeros(len(terms), len(schedules), len(tried), dtype=torch.float64)
    losses = losses.to(next(iter(batches[0].values())).device)
    steps = [
        (index, position, number)
        for index in my_share(len(batches))
        for position in range(len(schedules))
        for number in range(len(tried))
    ]
    dense = None
    sums = _Losses(losses)
    for index, position, number in resumed(steps, "token scores", "schedule", name="merges", sums=sums):
        if dense is None or dense.index != index:
            rows = draw_rows(real[index], config.rows, streams[index])
            dense = _dense(model, groups, batches[index], index=index, real=real[index], rows=rows)
        schedule = schedules[position][number]
        for term, distances in enumerate(
            _distances(model, groups, dense, position, schedule, temperature=config.temperature)
        ):
            for distance in distances:
                losses[term, position, number] += distance.to(losses)
    add_up(losses)
    means = (losses / len(batches)).cpu()
    return {
        term: {layer: _increments(tried, curve) for layer, curve in zip(layers[:-1], mean, strict=True)}
        for term, mean in zip(terms, means, strict=True)
    }


class _Losses:
    """The losses, for a loop that adds to them."""

    def __init__(self, losses: Tensor):
        self.losses = losses

    def tensors(self) -> dict[str, Tensor]:
        return {"losses": self.losses}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        fill(self.tensors(), saved)


@dataclass(frozen=True)
class _Dense:
    """What the dense model makes of a batch."""

    index: int
    batch: Batch
    real: TokenMasks
    rows: Rows
    outputs: Mapping[str, Any]
    features: Mapping[str, Tensor]
    final: Output | None


def _dense(model: nn.Module, groups: Groups, batch: Batch, *, index: int, real: TokenMasks, rows: Rows) -> _Dense:
    with recorded(model, groups.layers) as outputs:
        final = compared_output(model, batch, rows)
    outputs = dict(outputs)
    return _Dense(index, batch, real, rows, outputs, trajectory_features(outputs, rows, real), final)


def _distances(
    model: nn.Module, groups: Groups, dense: _Dense, position: int, schedule: TokenSchedule, *, temperature: float
) -> tuple[list[Tensor], ...]:
    """How far all later layers, and the output, move if tokens are merged after the layer at a position."""
    layers = groups.layers
    earlier, later = list(layers)[:position], list(layers)[position + 1 :]
    with (
        replayed(model, layers, {name: dense.outputs[name] for name in earlier}),
        merging(model, groups, schedule),
        recorded(model, {name: layers[name] for name in later}) as merged,
    ):
        output = compared_output(model, dense.batch, dense.rows)
    features = trajectory_features(merged, dense.rows, dense.real)
    moved = [manifold_distance(features[name], dense.features[name]) for name in later]
    if dense.final is None:
        return (moved,)
    return moved, [output_distance(output.values, dense.final.values, temperature, dense.final.kind)]


def _increments(tried: Sequence[int], losses: Tensor) -> Tensor:
    """The loss of each further pair, never falling, from losses at some numbers of pairs: their lower convex hull."""
    widths = torch.tensor([0, *tried]).diff()
    slopes = losses.diff(prepend=losses.new_zeros(1)) / widths
    slopes = torch.from_numpy(isotonic_regression(slopes.numpy(), weights=widths.numpy()).x)
    return slopes.clamp_min(0).repeat_interleave(widths)
