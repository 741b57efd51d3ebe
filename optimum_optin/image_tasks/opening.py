"""An image as an array, upright, and what a model's own processor makes of it.

`inputs/images.py` opens calibration images; here any failure is the sample's, and is said with its name.
"""

from __future__ import annotations

import inspect
import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ImageProcessingMixin

from ..running.forward import takes

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels of a model -> Pillow's name of such images
_ORIENTATION = 0x0112  # the tag of EXIF
_TURNS = {  # its value -> what turns the image upright
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def read_pixels(value: Any, mode: str, name: str) -> np.ndarray:
    """An image as bytes, turned upright as its EXIF says, shape (height, width) or (height, width, channels).

    Args:
        value: a file, its content, the form in which `datasets` keeps either, an image of Pillow's, or an array.
        mode: Pillow's name of the images that are wanted.
        name: what messages call it.

    Raises:
        ValueError: it cannot be read.
    """
    from PIL import Image

    try:
        opened = Image.fromarray(np.asarray(value)) if isinstance(value, (np.ndarray, Tensor)) else open_file(value)
        if opened.mode.startswith("I;16"):  # Pillow would cut off what is above 255
            opened = Image.fromarray((np.asarray(opened) / 257).round().astype(np.uint8))
        return np.asarray(opened.convert(mode))
    except MemoryError:
        raise
    except Exception as error:  # Pillow has errors of many kinds for damaged files
        raise ValueError(f"{name} cannot be read as an image: {error or type(error).__name__}.") from error


def open_file(value: Any) -> Any:
    """A file, or an image of Pillow's, as one of Pillow's images: read, closed, and turned upright."""
    from PIL import Image

    if isinstance(value, Mapping):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    if isinstance(value, (str, os.PathLike, bytes)):
        with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as opened:
            opened.load()
            return _upright(opened)
    value.load()
    return _upright(value)


def mode_of(model: nn.Module) -> str:
    """Pillow's name of the images that a model takes; colours if its config does not say.

    Raises:
        ValueError: files have no such images.
    """
    config = getattr(model, "config", None)
    channels = getattr(getattr(config, "vision_config", config), "num_channels", 3)
    if channels not in _MODES:
        raise ValueError(f"this model takes images of {channels} channels, which files do not have.")
    return _MODES[channels]


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


def _upright(image: Any) -> Any:
    """The image, turned as its EXIF says.

    Pillow's `exif_transpose` would write the EXIF anew, and fail if a tag of it is damaged.
    """
    from PIL import Image

    turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    return image.copy() if turn is None else image.transpose(Image.Transpose[turn])
