"""Annotated images on their way through a model: read one by one, in batches of images that have the same size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from ..annotations.samples import AnnotatedSamples
from ..running.forward import run_model
from ..running.freezing import frozen
from .opening import inputs_of, mode_of, prepared, read_pixels, stacked

_WAITING = 4  # batches of images of odd sizes that are kept until there are more of their kind


@dataclass(frozen=True)
class Passed:
    """Images that were in a model together.

    Args:
        places: places of the samples.
        sizes: height and width of each image as it is.
        filled: height and width that each would have if what its processor filled up were a part of it.
        annotations: the annotation of each.
        outputs: the model's outputs by name.
    """

    places: list[int]
    sizes: list[tuple[int, int]]
    filled: list[tuple[int, int]]
    annotations: list[Any]
    outputs: dict[str, Any]


def passed(
    model: nn.Module,
    processor: Any,
    samples: AnnotatedSamples,
    batch_size: int,
    *,
    task: str,
    annotated: Callable[[int, tuple[int, int]], Any],
) -> Iterator[Passed]:
    """What a model returns for every image, batch by batch, without gradients.

    Every image is prepared alone, so that the batch size changes nothing: images are not filled up to each other's
    size.

    Args:
        model: the model; it is left as it was.
        processor: its image processor.
        samples: the images.
        batch_size: images per forward pass.
        task: the progress bar's name.
        annotated: place of a sample and its image's height and width -> the annotation.

    Raises:
        ValueError: a batch size below 1, or an image that cannot be read; names it.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be a whole number of at least 1.")
    mode = mode_of(model)
    like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    waiting: dict[tuple[int, ...], list[tuple[int, tuple[int, int], Any, dict[str, Tensor]]]] = {}

    def run(kind: tuple[int, ...]) -> Passed:
        places, sizes, annotations, inputs = map(list, zip(*waiting.pop(kind), strict=True))
        batch = inputs_of(stacked(inputs, like.dtype), model)
        filled = [_filled(size, each) for size, each in zip(sizes, inputs, strict=True)]
        with torch.inference_mode(), frozen(model):
            outputs = run_model(model, send_to_device(batch, like.device))
        return Passed(places, sizes, filled, annotations, outputs)

    for place in tqdm(range(len(samples)), desc=task, unit="image"):
        image = opened_image(samples, place, mode)
        size = image.shape[:2]
        inputs = prepared(image, processor)
        kind = tuple(inputs["pixel_values"].shape)
        waiting.setdefault(kind, []).append((place, size, annotated(place, size), inputs))
        if len(waiting[kind]) == batch_size:
            yield run(kind)
        elif sum(map(len, waiting.values())) >= _WAITING * batch_size:
            yield run(max(waiting, key=lambda each: len(waiting[each])))
    for kind in list(waiting):
        yield run(kind)


def _filled(size: tuple[int, int], inputs: dict[str, Tensor]) -> tuple[int, int]:
    """The size of an image together with what was filled up at its right and its bottom."""
    if "pixel_mask" not in inputs:
        return size
    real = inputs["pixel_mask"].bool()
    shares = real.any(1).float().mean(), real.any(0).float().mean()  # of the rows, and of the columns
    return tuple(round(side / float(share)) for side, share in zip(size, shares, strict=True))


def opened_image(samples: AnnotatedSamples, place: int, mode: str = "RGB") -> np.ndarray:
    """An image as an array, upright; in colour, of shape (height, width, 3)."""
    return read_pixels(samples.rows[place][samples.column], mode, samples.name(place))
