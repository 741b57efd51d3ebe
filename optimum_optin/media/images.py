"""Calibration images: from whatever the user has to batches of pixel values."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ImageProcessingMixin
from transformers.utils import logging

from ..models.identity import type_of
from ..reading.kinds import has_image_suffix
from ..reading.label_maps import check_no_map, without_maps
from ..reading.samples import is_missing
from ..reading.sound_files import is_sound
from ..running.batch import Batch
from ..running.forward import takes
from .one_by_one import name_of, read_each
from .values import tensor_of
from .vision import channels_of, check_inputs

logger = logging.get_logger(__name__)

_IMAGE_COLUMNS = ("image", "img")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels of a model -> Pillow's name of such images
_OF_SEVERAL_SIZES = "calibration images differ in size once processed, {}: let the image processor resize or crop them."
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


def image_batches(
    samples: Mapping[int, Any],
    model: nn.Module,
    processor: Any,
    *,
    batch_size: int,
    unreadable: str = "skip",
    **_of_texts: Any,
) -> list[Batch]:
    """Batches of pixel values in the model's precision; arguments as for `pixel_values`.

    Args:
        samples: row -> image.
        model: the model the batches are for.
        processor: its image processor.
        batch_size: images per batch.
        unreadable: what to do about an image that cannot be read.
        **_of_texts: options for reading texts; they are ignored.
    """
    images = [each for each in _processed(samples, model, processor, unreadable) if each is not None]
    images = [{**each, "pixel_values": each["pixel_values"].to(model.dtype)} for each in images]
    sizes = {_size(each) for each in images}
    pads = takes(model, "pixel_mask")
    if len(sizes) > 1 and not pads and not _may_differ(processor):
        raise ValueError(_OF_SEVERAL_SIZES.format(", ".join(map(str, sorted(sizes)))))
    images.sort(key=_size)  # so that a batch holds little padding, or none; the order of equal ones stays
    batches: list[list[dict[str, Tensor]]] = []
    for image in images:
        if not batches or len(batches[-1]) == batch_size or not (pads or _size(batches[-1][0]) == _size(image)):
            batches.append([])
        batches[-1].append(image)
    return [_padded(part) for part in batches]


def _padded(images: list[dict[str, Tensor]]) -> Batch:
    """A batch of images; where sizes differ, filled up with zeros at the right and below, as `pixel_mask` says."""
    height, width = (max(sides) for sides in zip(*map(_size, images), strict=True))
    if all(_size(image) == (height, width) for image in images) and not any("pixel_mask" in each for each in images):
        return {"pixel_values": torch.stack([image["pixel_values"] for image in images])}
    pixels, masks = [], []
    for image in images:
        values = image["pixel_values"]
        mask = image.get("pixel_mask")
        mask = torch.ones(values.shape[1:], dtype=torch.long) if mask is None else mask.long()
        missing = 0, width - values.shape[2], 0, height - values.shape[1]
        pixels.append(torch.nn.functional.pad(values, missing))
        masks.append(torch.nn.functional.pad(mask, missing))
    return {"pixel_values": torch.stack(pixels), "pixel_mask": torch.stack(masks)}


def _size(image: Mapping[str, Tensor]) -> tuple[int, int]:
    height, width = image["pixel_values"].shape[-2:]
    return height, width


def _may_differ(processor: Any) -> bool:
    """Whether images differ in size once processed by design: they are padded in batches (YOLOS)."""
    return bool(getattr(getattr(processor, "image_processor", processor), "do_pad", False))


def pixel_values(
    samples: Mapping[int, Any], model: nn.Module, processor: Any, unreadable: str = "skip"
) -> list[Tensor | None]:
    """The pixel values of every sample in the model's precision, shape (channels, height, width).

    Args:
        samples: row in the user's data -> image (Pillow's, array of whole numbers, path or content of a file),
            pixel values of shape (channels, height, width), tuple that begins with one of these, or dict that
            holds one of these under `pixel_values`, `image` or the only column with images. Files and Pillow's images
            are turned upright, as their EXIF says.
        model: the model the batches are for.
        processor: its image processor; not needed for pixel values.
        unreadable: `"skip"` gives `None` for an image that cannot be read, or is `None`, with a warning that names it;
            `"stop"` raises.

    Raises:
        ValueError: something that is no image, images without a processor, an image that cannot be read, or none that
            can.
    """
    found = _processed(samples, model, processor, unreadable)
    pixels = [each if each is None else each["pixel_values"] for each in found]
    sizes = {tuple(each.shape) for each in pixels if each is not None}
    if len(sizes) > 1:
        raise ValueError(_OF_SEVERAL_SIZES.format(", ".join(map(str, sorted(sizes)))))
    return [each if each is None else each.to(model.dtype) for each in pixels]


def _processed(
    samples: Mapping[int, Any], model: nn.Module, processor: Any, unreadable: str
) -> list[dict[str, Tensor] | None]:
    """`pixel_values` of every sample and, where it is known, its `pixel_mask`; arguments as for `pixel_values`."""
    found = {row: _found(sample, model) for row, sample in samples.items()}
    there = [image for image in found.values() if image is not None]
    ready = _as_they_are if there and all(map(_is_processed, there)) else _preparation(model, processor)
    images = read_each(found, ready, unreadable)
    masks = {row: sample["pixel_mask"] for row, sample in samples.items() if _has_mask(sample, model)}
    for (row, _), image in zip(samples.items(), images, strict=True):
        if image is not None and row in masks:
            mask = torch.as_tensor(masks[row])
            image["pixel_mask"] = mask[0] if mask.dim() == 3 and len(mask) == 1 else mask  # a batch of one
    return images


def _has_mask(sample: Any, model: nn.Module) -> bool:
    return (
        isinstance(sample, Mapping) and {"pixel_values", "pixel_mask"} <= sample.keys() and takes(model, "pixel_mask")
    )


def _as_they_are(image: Any) -> dict[str, Tensor]:
    return {"pixel_values": torch.as_tensor(image)}


def is_image(value: Any) -> bool:
    """Whether something is an image (also in the form in which `datasets` keeps one) or pixel values."""
    if _is_undecoded(value):
        return True
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim in (2, 3)
    return any(kind.__module__ == "PIL.Image" for kind in type(value).__mro__)  # Pillow may not be there


def _found(sample: Any, model: nn.Module) -> Any:
    """The image in a sample: pixel values, an array, or something that Pillow made or can open; `None` if missing."""
    value = sample
    if isinstance(value, Mapping) and "pixel_values" in value:
        check_inputs(value)
        value = tensor_of(value["pixel_values"])
        value = value[0] if value.ndim == 4 and len(value) == 1 else value  # a batch of one
    elif isinstance(value, Mapping) and not _is_undecoded(value):
        value = value[image_column(value, model)]
    elif isinstance(value, (tuple, list)) and value:  # image and label, as in torchvision's data sets
        value = value[0]
    if is_missing(value):
        return None
    if isinstance(value, Tensor):
        value = tensor_of(value)
    heard = is_sound(value)
    if not heard and (is_image(value) or _is_file(value)):
        return value
    kind = "sounds" if heard else "text" if isinstance(value, str) else type(value).__name__
    raise ValueError(
        f"{model.config.model_type!r} is a model of images, but the calibration data hold {kind}, {sample!r:.80}: give "
        "images, paths of image files, pixel values, or a data set with a column of images."
    )


def image_column(sample: Mapping[str, Any], model: nn.Module) -> str:
    """The column that holds the image of a sample.

    Raises:
        ValueError: it cannot be told.
    """
    if "pixel_values" in sample:
        return "pixel_values"
    images = [name for name, value in sample.items() if is_missing(value) or is_image(value)]
    images = without_maps(images, _segments(model))
    there = [name for name in images if not is_missing(sample[name])]
    if not there:  # a name of a file may stand beside the image, too
        files = [name for name, value in sample.items() if _is_file(value)]
        images, there = images + files, files
    known = [name for name in _IMAGE_COLUMNS if name in images] or there or images
    if len(known) != 1 and not set(known) & set(_IMAGE_COLUMNS):
        raise ValueError(
            f"cannot tell the column of images among {', '.join(map(str, sample)) or 'none'}, and "
            f"{type_of(model)!r} is a model of images: rename it to 'image'."
        )
    return known[0]


def _segments(model: nn.Module) -> bool:
    """Whether a model is a segmenter, by the name of its class or of one that it is made from."""
    return any("Segment" in each.__name__ for each in type(model).__mro__)


def _is_file(value: Any) -> bool:
    """Whether this is a file or the content of one; whether it is an image is seen when it is opened."""
    if isinstance(value, (os.PathLike, bytes)):
        return True
    return isinstance(value, str) and (has_image_suffix(value) or os.path.isfile(value))


def _is_undecoded(value: Any) -> bool:
    """Whether this is an image in the form in which `datasets` keeps one."""
    return isinstance(value, Mapping) and set(value) == {"bytes", "path"}


def _is_processed(image: Any) -> bool:
    if isinstance(image, np.ndarray):
        return np.issubdtype(image.dtype, np.floating)
    return isinstance(image, Tensor) and image.is_floating_point()


def _image_processor(processor: Any) -> Any:
    processor = getattr(processor, "image_processor", processor)
    if not isinstance(processor, ImageProcessingMixin):
        given = "none" if processor is None else type(processor).__name__
        raise ValueError(
            f"images need an image processor, got {given}: pass processor=AutoImageProcessor.from_pretrained(...), or "
            "pixel values."
        )
    return processor


def _preparation(model: nn.Module, processor: Any) -> Callable[[Any], dict[str, Tensor]]:
    """The function that turns an image into pixel values of shape (channels, height, width), and a mask of padding."""
    masked = takes(model, "pixel_mask")
    channels, processor = channels_of(model), _image_processor(processor)
    if channels not in MODES:
        raise ValueError(f"this model takes images of {channels} channels, which files do not have: give pixel values.")

    def prepare(image: Any) -> dict[str, Tensor]:
        opened = open_image(image)
        if _segments(model):
            check_no_map(opened, getattr(model.config, "num_labels", 0), name_of(image))
        converted = _converted(opened, MODES[channels], name_of(image))
        try:
            made = processor(images=[converted], return_tensors="pt")
            names = ["pixel_values"] + ["pixel_mask"] * (masked and "pixel_mask" in made)
            return {name: made[name][0] for name in names}
        except ValueError as error:
            raise ValueError(
                f"{type(processor).__name__} cannot take an image of the model's {channels} channels, "
                f"{converted.width} x {converted.height} pixels ({error}): pass the model's own, or give pixel values."
            ) from error

    return prepare


def in_mode(image: Any, mode: str, name: str | None = None):
    """The image as one of Pillow's, in this mode.

    Args:
        image: an image in whatever form.
        mode: Pillow's name of the mode.
        name: what to call it in errors; `None` for its own name.

    Raises:
        OSError: it cannot be read, or its numbers are of unknown range.
    """
    return _converted(open_image(image), mode, name or name_of(image))


def _converted(opened: Any, mode: str, name: str | None):
    pillow = _pillow()
    if opened.mode in ("I", "F"):
        raise OSError(
            f"an image must have numbers from 0 to 255, or to 65535 (mode 'I;16'), got mode {opened.mode!r} of unknown "
            f"range, {name or repr(opened):.120}: scale it to 0 to 255 and convert it to 'L'."
        )
    if opened.mode.startswith("I;16"):  # Pillow would cut off what is above 255
        opened = pillow.Image.fromarray((np.asarray(opened) / 257).round().astype(np.uint8))
    return opened.convert(mode)


def open_image(image: Any):
    """The image as one of Pillow's, turned upright; a file is read and closed.

    Raises:
        OSError: the image or its EXIF cannot be read; Pillow has errors of many kinds for damaged files.
    """
    if isinstance(image, (np.ndarray, Tensor)):
        return _image(image)
    pillow = _pillow()
    try:
        return _pillow_image(image, pillow)
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # TypeError, struct.error, SyntaxError, ValueError, DecompressionBombError, ...
        raise OSError(str(error) or type(error).__name__) from error


def _pillow_image(image: Any, pillow: Any):
    if not _is_undecoded(image) and not _is_file(image):
        image.load()
        return _upright(image, pillow)
    file = image
    if _is_undecoded(image):
        file = image["path"] if image["bytes"] is None else image["bytes"]
        if isinstance(file, str) and not os.path.exists(file):  # somewhere on the Hub, or in an archive
            from datasets import Image  # slow to import

            return Image().decode_example(image)
    with pillow.Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
        opened.load()
        return _upright(opened, pillow)


def _upright(image: Any, pillow: Any):
    """A copy of the image, turned as its EXIF says. Pillow's `exif_transpose` would also write the EXIF anew, which
    fails if any tag is damaged.
    """
    turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    return image.copy() if turn is None else image.transpose(pillow.Image.Transpose[turn])


def _image(image: np.ndarray | Tensor):
    """An array as one of Pillow's images."""
    array = np.asarray(image.cpu() if isinstance(image, Tensor) else image)
    if array.dtype != np.uint8:
        raise ValueError(
            f"an image given as an array must have numbers from 0 to 255 (uint8), got {array.dtype}: give "
            "floating-point arrays only if all of them are pixel values."
        )
    if array.ndim == 3 and array.shape[0] in MODES and array.shape[2] not in MODES:
        array = array.transpose(1, 2, 0)  # (channels, height, width) -> (height, width, channels)
    try:
        return _pillow().Image.fromarray(array.squeeze(2) if array.ndim == 3 and array.shape[2] == 1 else array)
    except TypeError as error:
        raise OSError(f"no image has the shape {array.shape}") from error


def _pillow():
    """Pillow, which only images need."""
    try:
        import PIL.Image
    except ImportError as error:
        raise ImportError("calibration with images needs Pillow: pip install pillow.") from error
    return PIL
