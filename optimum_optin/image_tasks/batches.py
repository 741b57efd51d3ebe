"""Annotated images on their way through a model: read one by one, in batches of images that have the same size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from ..inputs.images import converted_image, mode_of, preparation
from ..running.forward import run_model
from ..running.freezing import frozen
from .samples import AnnotatedImages

_WAITING = 4  # batches of images of odd sizes that are kept until there are more of their kind


def passed(
    model: nn.Module,
    processor: Any,
    samples: AnnotatedImages,
    batch_size: int,
    *,
    task: str,
    annotated: Callable[[int, tuple[int, int]], Any],
) -> Iterator[tuple[list[int], list[tuple[int, int]], list[Any], dict[str, Any]]]:
    """What a model returns for every image, batch by batch, without gradients.

    Every image is prepared alone, so that the batch size changes nothing: images are not padded to each other's size.

    Args:
        model: the model; it is left as it was.
        processor: its image processor.
        samples: the images.
        batch_size: images per forward pass.
        task: the progress bar's name.
        annotated: place of a sample and its image's height and width -> the annotation.

    Yields:
        Places of the samples, their images' heights and widths, their annotations, and the model's outputs by name.

    Raises:
        ValueError: a batch size below 1, or an image that cannot be read; names it.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be a whole number of at least 1.")
    prepare, mode = preparation(model, processor), mode_of(model)
    like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    waiting: dict[tuple[int, ...], list[tuple[int, tuple[int, int], Any, Tensor]]] = {}

    def run(kind: tuple[int, ...]) -> tuple[list[int], list[tuple[int, int]], list[Any], dict[str, Any]]:
        places, sizes, annotations, pixels = map(list, zip(*waiting.pop(kind), strict=True))
        batch = send_to_device({"pixel_values": torch.stack(pixels).to(like.dtype)}, like.device)
        with torch.inference_mode(), frozen(model):
            return places, sizes, annotations, run_model(model, batch)

    for place in tqdm(range(len(samples)), desc=task, unit="image"):
        image = _opened(samples, place, mode)
        size = image.shape[:2]
        pixels = prepare(image)
        kind = tuple(pixels.shape)
        waiting.setdefault(kind, []).append((place, size, annotated(place, size), pixels))
        if len(waiting[kind]) == batch_size:
            yield run(kind)
        elif sum(map(len, waiting.values())) >= _WAITING * batch_size:
            yield run(max(waiting, key=lambda each: len(waiting[each])))
    for kind in list(waiting):
        yield run(kind)


def opened_image(samples: AnnotatedImages, place: int) -> np.ndarray:
    """An image in colour, upright, shape (height, width, 3)."""
    return _opened(samples, place, "RGB")


def _opened(samples: AnnotatedImages, place: int, mode: str) -> np.ndarray:
    """The image as an array: turned upright by its EXIF once, and not again by whoever reads it next."""
    try:
        return np.asarray(converted_image(samples.rows[place][samples.image], mode))
    except OSError as error:
        raise ValueError(f"{samples.name(place)} cannot be read as an image: {error}.") from error
