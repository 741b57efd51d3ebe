"""Which pixels of a map are compared: some of every sample, spread evenly, the same in every model."""

from __future__ import annotations

import torch
from torch import Tensor

from ..media.padding import resized_mask
from ..running.batch import Batch, samples_in

_MOST = 1024  # of a sample: those of a map of 512 x 512 pixels and 150 classes would take 160 MB


def drawn_pixels(batch: Batch, rows: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels to compare, as places in height * width, shape (batch, pixels).

    They are all, or one out of each of 1024 runs of pixels that follow each other: which one, the compared tokens
    decide as a seed would, so that the same pixels are drawn for the dense and for the pruned model.

    Args:
        batch: the model's inputs; what `pixel_mask` calls padding is not drawn.
        rows: token positions (`draw_rows`), shape (K,).
        size: height and width of the map.
    """
    real = _real_pixels(batch, size)
    counts = real.sum(1)  # (batch,)
    most = int(counts.max())
    generator = torch.Generator().manual_seed(int(rows.sum()))
    places = torch.arange(min(most, _MOST), dtype=torch.float64).expand(len(real), -1)
    if most > _MOST:
        places = places + torch.rand(places.shape, generator=generator, dtype=torch.float64)
    numbers = (places * counts[:, None].cpu() / places.shape[1]).long().to(real.device)  # which of the real pixels
    if bool(real.all()):
        return numbers
    ordered = real.byte().argsort(dim=1, descending=True, stable=True)  # the real ones first, in their order
    return ordered.gather(1, numbers)


def at_pixels(maps: Tensor, pixels: Tensor) -> Tensor:
    """What maps hold at pixels, shape (batch, channels, pixels).

    Args:
        maps: shape (batch, channels, height, width).
        pixels: see `drawn_pixels`.
    """
    flat = maps.flatten(2)
    return flat.gather(2, pixels.to(maps.device)[:, None].expand(-1, flat.shape[1], -1))


def _real_pixels(batch: Batch, size: tuple[int, int]) -> Tensor:
    """Which pixels are none of padding, shape (batch, height * width), boolean."""
    mask = batch.get("pixel_mask")
    if mask is None:
        device = next(iter(batch.values())).device
        return torch.ones(samples_in(batch), size[0] * size[1], dtype=torch.bool, device=device)
    return resized_mask(mask, size).flatten(1)
