"""Scores of merging: what merging tokens after a layer loses, in the terms that units are scored by.

A few numbers of pairs are merged after one layer at a time, and what follows is compared with the dense model's: the
features of all later layers, where a merged token stands in the place of each of its tokens, and the output. Between
the numbers that are tried, losses are taken as convex.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor, nn
from transformers.utils.logging import tqdm

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
from ..passes.outputs import compared_output
from ..passes.trajectory import Rows, draw_rows, trajectory_features
from ..running.batch import Batch
from ..running.processes import add_up, my_share, progress
from ..running.randomness import generators
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
    mine = my_share(len(batches))
    bar = progress(range(len(mine) * len(schedules) * len(tried)), "token scores", "schedule")
    for index in mine:
        _add_losses(
            losses,
            model,
            groups,
            schedules,
            batch=batches[index],
            real=real[index],
            rows=draw_rows(real[index], config.rows, streams[index]),
            temperature=config.temperature,
            bar=bar,
        )
    add_up(losses)
    means = (losses / len(batches)).cpu()
    return {
        term: {layer: _increments(tried, curve) for layer, curve in zip(layers[:-1], mean, strict=True)}
        for term, mean in zip(terms, means, strict=True)
    }


def _add_losses(
    losses: Tensor,
    model: nn.Module,
    groups: Groups,
    schedules: Sequence[Sequence[TokenSchedule]],
    *,
    batch: Batch,
    real: TokenMasks,
    rows: Rows,
    temperature: float,
    bar: tqdm,
) -> None:
    """Add the losses of each layer's schedules on one batch, in place; `losses` is (terms, layers - 1, schedules)."""
    layers = groups.layers
    with recorded(model, layers) as outputs:
        final = compared_output(model, batch, rows)
    outputs = dict(outputs)
    dense = trajectory_features(outputs, rows, real)
    for position, by_pairs in enumerate(schedules):
        earlier, later = list(layers)[:position], list(layers)[position + 1 :]
        for number, schedule in enumerate(by_pairs):
            with (
                replayed(model, layers, {name: outputs[name] for name in earlier}),
                merging(model, groups, schedule),
                recorded(model, {name: layers[name] for name in later}) as merged,
            ):
                output = compared_output(model, batch, rows)
            features = trajectory_features(merged, rows, real)
            for name in later:
                losses[0, position, number] += manifold_distance(features[name], dense[name]).to(losses)
            if final is not None:
                diverged = output_distance(output.values, final.values, temperature, final.kind)
                losses[1, position, number] += diverged.to(losses)
            bar.update()


def _increments(tried: Sequence[int], losses: Tensor) -> Tensor:
    """The loss of each further pair, never falling, from losses at some numbers of pairs: their lower convex hull."""
    widths = torch.tensor([0, *tried]).diff()
    slopes = losses.diff(prepend=losses.new_zeros(1)) / widths
    slopes = torch.from_numpy(isotonic_regression(slopes.numpy(), weights=widths.numpy()).x)
    return slopes.clamp_min(0).repeat_interleave(widths)
