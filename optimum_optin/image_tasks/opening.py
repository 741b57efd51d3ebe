"""An image as an array, upright, and what a model's own processor makes of it.

Images are opened as calibration images are; here any failure is the sample's, and is said with its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ImageProcessingMixin

from ..media.images import MODES, in_mode
from ..running.forward import takes


def read_pixels(value: Any, mode: str, name: str) -> np.ndarray:
    """An image as bytes, turned upright as its EXIF says, shape (height, width) or (height, width, channels).

    Args:
        value: a file, its content, the form in which `datasets` keeps either, an image of Pillow's, or an array.
        mode: Pillow's name of the images that are wanted.
        name: what messages call it.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return np.asarray(in_mode(value, mode, name))
    except MemoryError:
        raise
    except Exception as error:  # Pillow has errors of many kinds for damaged files
        raise ValueError(f"{name} cannot be read as an image: {error or type(error).__name__}.") from error


def mode_of(model: nn.Module) -> str:
    """Pillow's name of the images that a model takes; colours if its config does not say.

    Raises:
        ValueError: files have no such images.
    """
    config = getattr(model, "config", None)
    channels = getattr(getattr(config, "vision_config", config), "num_channels", 3)
    if channels not in MODES:
        raise ValueError(f"this model takes images of {channels} channels, which files do not have.")
    return MODES[channels]


def prepared(image: np.ndarray, processor: Any) -> dict[str, Tensor]:
    """What a processor makes of an image: its pixel values, shape (channels, height, width), and the mask of those that
    are no filling, if it has one.

    Args:
        image: from `read_pixels`.
        processor: an image processor of transformers, or a callable that makes a tensor of an image of Pillow's.

    Raises:
        ValueError: it is neither.
    """
    from PIL import Image

    found = getattr(processor, "image_processor", processor)
    if isinstance(found, ImageProcessingMixin):
        inputs = found(images=[Image.fromarray(image)], return_tensors="pt")
        return {name: inputs[name][0] for name in ("pixel_values", "pixel_mask") if name in inputs}
    made = found(Image.fromarray(image)) if callable(found) else None
    if not isinstance(made, Tensor) or made.dim() != 3:
        raise ValueError(
            f"images need an image processor, got {type(processor).__name__}: pass "
            "processor=AutoImageProcessor.from_pretrained(...), or a callable that makes a tensor of an image."
        )
    return {"pixel_values": made}


def check_uncropped(processor: Any, task: str) -> None:
    """Raise if a processor cuts images off: what a model finds in the rest stands elsewhere in the whole image.

    Raises:
        ValueError: says what to set.
    """
    found = getattr(processor, "image_processor", processor)
    if getattr(found, "do_center_crop", None):
        raise ValueError(
            f"{type(found).__name__} crops images, and {task} is of whole ones: set its do_center_crop=False, if the "
            "model takes images of any shape, or resize them to its own."
        )


def inputs_of(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A batch by the names of a model's arguments; a module of one's own may call the images otherwise."""
    if takes(model, "pixel_values"):
        return dict(batch)
    first = next(iter(inspect.signature(model.forward).parameters))
    return {first: batch["pixel_values"]}


def stacked(inputs: list[dict[str, Tensor]], dtype: torch.dtype) -> dict[str, Tensor]:
    """A batch of images of one size."""
    batch = {name: torch.stack([each[name] for each in inputs]) for name in inputs[0]}
    return batch | {"pixel_values": batch["pixel_values"].to(dtype)}
