"""What merging tokens after a layer costs, in the terms that units are scored by.

Layer by layer, a few numbers of pairs are merged after it alone, and what follows is compared with the dense model's:
the features of all later layers, with merged tokens in the place of each that they stand for, and the output. Between
the numbers tried, losses are taken as convex.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..architectures import find_layers
from ..config import OptinConfig
from ..groups import Batch
from ..images import image_tokens, prefix_tokens
from ..losses import manifold_distance, output_distance
from ..merging import most_merges
from ..processes import add_up, my_share, progress
from ..randomness import generators
from ..schedule import TokenSchedule
from ..token_merging import merging
from ..trajectory import compared_output, draw_rows, recorded, replayed, trajectory_features
from .registry import Terms

_BATCHES = 4  # losses of many samples are means already
_PARTS = 4  # numbers of pairs that are tried, in equal steps up to all


@torch.no_grad()
def score_merges(model: nn.Module, batches: Sequence[Batch], config: OptinConfig) -> Terms:
    """What each further pair of tokens costs that is merged after a layer.

    Args:
        model: the dense model, frozen.
        batches: calibration batches of images.
        config: rows, temperature and seed.

    Returns:
        Term -> layer -> loss of one more pair, never falling, shape (pairs there are,), float64; the last layer, after
        which there is nothing to save, is not there.
    """
    layers = list(find_layers(model))
    protected = prefix_tokens(model)
    batches = batches[:_BATCHES]
    most = most_merges(image_tokens(model, batches[0]), protected)
    tried = sorted({round(most * part / _PARTS) for part in range(1, _PARTS + 1)} - {0})
    streams = generators(config.seed, len(batches))
    losses: dict[str, Tensor] = {}  # term -> shape (layers, numbers tried)
    mine = my_share(len(batches))
    bar = progress(range(len(mine) * len(layers[:-1]) * len(tried)), "token scores", "schedule")
    for index in mine:
        batch = batches[index]
        rows = draw_rows(batch, config.rows, streams[index], image_tokens(model, batch))
        for term, part in _losses(model, batch, rows, tried, protected, config.temperature, bar).items():
            losses[term] = losses.get(term, 0) + part
    terms: Terms = {}
    for term, total in losses.items():
        add_up(total)
        curves = zip(layers[:-1], total.cpu() / len(batches), strict=True)
        terms[term] = {layer: _increments(tried, curve) for layer, curve in curves}
    return terms


def _losses(
    model: nn.Module, batch: Batch, rows: Tensor, tried: Sequence[int], protected: int, temperature: float, bar
) -> dict[str, Tensor]:
    """Term -> losses on one batch, shape (layers, numbers tried), float64."""
    layers = find_layers(model)
    names = list(layers)
    tokens = image_tokens(model, batch)
    with recorded(model, layers) as outputs:
        final = compared_output(model, batch, rows)
    outputs = dict(outputs)
    dense = trajectory_features(outputs, rows, tokens)
    losses = {"trajectory": torch.zeros(len(names) - 1, len(tried), dtype=torch.float64, device=rows.device)}
    if final is not None:
        losses["output"] = torch.zeros_like(losses["trajectory"])
    for position, layer in enumerate(names[:-1]):
        later = names[position + 1 :]
        for number, pairs in enumerate(tried):
            with (
                replayed(model, layers, {name: outputs[name] for name in names[:position]}),
                merging(model, TokenSchedule(protected, {layer: pairs})),
                recorded(model, {name: layers[name] for name in later}) as merged,
            ):
                output = compared_output(model, batch, rows)
            features = trajectory_features(merged, rows, tokens)
            moved = sum(manifold_distance(features[name], dense[name]).to(rows.device) for name in later)
            losses["trajectory"][position, number] = moved
            if final is not None:
                losses["output"][position, number] = output_distance(
                    output.values, final.values, temperature, final.kind
                )
            bar.update()
    return losses


def _increments(tried: Sequence[int], losses: Tensor) -> Tensor:
    """The loss of each further pair, never falling, of losses at some numbers of pairs: their lower convex hull."""
    points = [(0, 0.0), *zip(tried, losses.tolist(), strict=True)]
    hull: list[tuple[int, float]] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    slopes = [max(_slope(left, right), 0.0) for left, right in zip(hull[:-1], hull[1:], strict=True)]
    widths = [right[0] - left[0] for left, right in zip(hull[:-1], hull[1:], strict=True)]
    return torch.tensor(slopes, dtype=torch.float64).repeat_interleave(torch.tensor(widths))


def _slope(left: tuple[int, float], right: tuple[int, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])
