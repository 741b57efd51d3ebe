"""Calibration pairs: from samples that hold an image and a text to batches of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..media.images import image_column, pixel_values
from ..running.batch import Batch
from .encoding import encode_texts, is_tokenised, pad_in_batches


def pair_batches(
    samples: Mapping[int, Any],
    model: nn.Module,
    processor: Any,
    *,
    batch_size: int,
    max_length: int | None = None,
    unreadable: str = "skip",
    text_columns: Sequence[str | int] | None = None,
) -> list[Batch]:
    """Batches of images and padded texts; arguments as for `calibration_batches`, but samples by row."""
    pixels = dict(zip(samples, pixel_values(samples, model, processor, unreadable), strict=True))
    readable = {row: sample for row, sample in samples.items() if pixels[row] is not None}
    texts = _without_images(readable, model)
    options = {"max_length": max_length, "unreadable": unreadable, "text_columns": text_columns}
    encoded = encode_texts(texts, model, processor, **options)
    kept = [pixels[row] for row in encoded]
    padded = pad_in_batches(list(encoded.values()), model, processor, batch_size)
    return [{**batch, "pixel_values": torch.stack([kept[index] for index in part])} for part, batch in padded]


def _without_images(samples: Mapping[int, Any], model: nn.Module) -> dict[int, Any]:
    """Each pair without its image."""
    rest = {row: _beside(sample, model) for row, sample in samples.items()}
    if not any(rest.values()):
        raise ValueError(
            f"{model.config.model_type!r} is a model of pairs, but the calibration data hold an image alone, "
            f"{next(iter(samples.values()))!r:.80}: give pairs (image, text), dicts with both, or prune its vision "
            "model."
        )
    return rest


def _beside(sample: Any, model: nn.Module) -> Any:
    if is_tokenised(sample):
        return {name: value for name, value in sample.items() if name != "pixel_values"}
    if isinstance(sample, Mapping):
        image = image_column(sample, model)
        return {name: value for name, value in sample.items() if name != image and isinstance(value, (str, type(None)))}
    return sample[1:] if isinstance(sample, (tuple, list)) else ()
