"""Calibration images: from whatever the user has to batches of pixel values."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ImageProcessingMixin, PreTrainedConfig
from transformers.utils import logging

from .architectures import find_layers, stack_inputs
from .groups import Batch, stack_of
from .masking import frozen

logger = logging.get_logger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_IMAGE_COLUMNS = ("image", "img")
_OTHER_SIZES = (
    "A model that takes images of other sizes only with interpolate_pos_encoding=True is pruned at its own size; the "
    "pruned model takes the others as before."
)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels of a model -> Pillow's name of such images


def takes_images(model: nn.Module) -> bool:
    """Whether the model's input is images alone."""
    return getattr(model, "main_input_name", None) == "pixel_values"


def takes_pairs(model: nn.Module) -> bool:
    """Whether the model's input is pairs of an image and a text."""
    return set(stack_inputs(model).values()) == {"pixel_values", "input_ids"}


@torch.no_grad()
def image_tokens(model: nn.Module, batch: Batch) -> int | None:
    """How many tokens the first layer gets of each image, class token and the like included; `None` for text."""
    if "pixel_values" not in batch:
        return None
    counts: list[int] = []

    def count(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]  # (batch, tokens, channels)
        counts.append(hidden.shape[1])
        raise _Counted

    reads = stack_inputs(model)
    first = next(path for name, path in find_layers(model).items() if reads[stack_of(name)] == "pixel_values")
    first = model.get_submodule(first)
    handle = first.register_forward_pre_hook(count, with_kwargs=True, prepend=True)
    try:
        with suppress(_Counted):
            model(**{name: value[:1] for name, value in batch.items()})
    finally:
        handle.remove()
    return counts[0]


class _Counted(Exception):
    """Ends a forward pass early."""


def image_batches(
    samples: Mapping[int, Any], model: nn.Module, processor: Any, batch_size: int, unreadable: str = "skip"
) -> list[Batch]:
    """Batches of pixel values in the model's precision; arguments as of `pixel_values`.

    Args:
        samples: row -> image.
        model: the model the batches are for.
        processor: its image processor.
        batch_size: images per batch.
        unreadable: what to do about an image that cannot be read.
    """
    pixels = [each for each in pixel_values(samples, model, processor, unreadable) if each is not None]
    parts = (pixels[start : start + batch_size] for start in range(0, len(pixels), batch_size))
    return [{"pixel_values": torch.stack(part)} for part in parts]


def pixel_values(
    samples: Mapping[int, Any], model: nn.Module, processor: Any, unreadable: str = "skip"
) -> list[Tensor | None]:
    """The pixel values of every sample in the model's precision, shape (channels, height, width).

    Args:
        samples: row in the user's data -> image (Pillow's, array of whole numbers, path of a file), pixel values of
            shape (channels, height, width), tuple that begins with one of these, or dict that holds one of these under
            `pixel_values`, `image` or the only column with images.
        model: the model the batches are for.
        processor: its image processor; not needed for pixel values.
        unreadable: `"skip"` gives `None` for an image that cannot be read, or is `None`, with a warning that names it;
            `"stop"` raises.

    Raises:
        ValueError: something that is no image, images without a processor, an image that cannot be read, or none that
            can.
    """
    found = {row: _found(sample, model) for row, sample in samples.items()}
    there = [image for image in found.values() if image is not None]
    ready = torch.as_tensor if there and all(map(_is_processed, there)) else _preparation(model, processor)
    pixels = _read(found, ready, unreadable)
    sizes = {tuple(each.shape) for each in pixels if each is not None}
    if len(sizes) > 1:
        raise ValueError(
            f"calibration images differ in size once processed, {', '.join(map(str, sorted(sizes)))}: let the image "
            "processor resize or crop them."
        )
    return [each if each is None else each.to(model.dtype) for each in pixels]


@torch.no_grad()
def check_images(batches: Sequence[Batch], model: nn.Module) -> None:
    """Raise if the model cannot take these batches, found by running it on one image of each size.

    Raises:
        ValueError: pixel values of another form or size, or that are not finite; or outputs that are maps of pixels.
    """
    channels, size = _channels(model), image_size(model)
    for number, batch in enumerate(batches):
        pixels = batch["pixel_values"]
        if pixels.dim() != 4 or not pixels.is_floating_point() or pixels.shape[1] != channels:
            raise ValueError(
                f"pixel_values of a batch must be floating-point numbers of shape (batch, {channels}, height, width), "
                f"got {pixels.dtype} of shape {tuple(pixels.shape)}: use the model's image processor."
            )
        if len(pixels) == 0 or not pixels.isfinite().all():
            raise ValueError(f"pixel_values of calibration batch {number} are empty, or NaN or infinite: check them.")
    for shape in sorted({batch["pixel_values"].shape[1:] for batch in batches}):
        batch = next(batch for batch in batches if batch["pixel_values"].shape[1:] == shape)
        inputs = {name: value[:1].to(model.device) for name, value in batch.items()}
        try:
            with frozen(model):
                outputs = model(**inputs, return_dict=True)
        except (ValueError, RuntimeError) as error:
            if shape[1:] == size:
                raise ValueError(
                    f"this {model.config.model_type!r} model cannot run on the calibration data: {error}."
                ) from error
            raise ValueError(
                f"this {model.config.model_type!r} model cannot take images of {shape[1]} x {shape[2]} pixels, it was "
                f"made for {size[0]} x {size[1]}: resize them with its image processor ({error}). {_OTHER_SIZES}"
            ) from error
        logits = outputs.get("logits")
        if logits is not None and logits.dim() > 3:
            raise ValueError(
                f"{type(model).__name__} cannot be pruned: its logits have the shape {tuple(logits.shape)}, and maps "
                "of labels (segmentation) are not supported yet. AutoModel loads the model without that head."
            )


def check_inputs(inputs: Iterable[str]) -> None:
    """Raise if there is an input among these names that says how to read images rather than what is in them.

    Raises:
        ValueError: there is.
    """
    if "interpolate_pos_encoding" in inputs:
        raise ValueError(f"calibration data cannot hold interpolate_pos_encoding: leave it out. {_OTHER_SIZES}")


def probe_images(model: nn.Module, tokens: int) -> Batch:
    """One blank image of which the model makes so many tokens, on its device.

    Raises:
        ValueError: there is no such image.
    """
    batch = usual_image(model)
    height, width = image_size(model)
    usual = image_tokens(model, batch)
    if usual != tokens:  # a model that interpolates its position embeddings takes other sizes, too
        patch = _pair(_vision_config(model).patch_size)
        patches = tokens - usual + (height // patch[0]) * (width // patch[1])
        rows = max((rows for rows in range(1, math.isqrt(max(patches, 0)) + 1) if patches % rows == 0), default=0)
        batch = _blank(model, rows * patch[0], patches // max(rows, 1) * patch[1])
        try:
            fits = rows > 0 and image_tokens(model, batch) == tokens
        except (ValueError, RuntimeError):
            fits = False
        if not fits:
            raise ValueError(f"tokens={tokens} is not what this model makes of an image: {usual}.")
    return batch


def prefix_tokens(model: nn.Module) -> int:
    """How many tokens come before an image's patches: class, distillation, register tokens."""
    height, width = image_size(model)
    rows, columns = _pair(_vision_config(model).patch_size)
    return image_tokens(model, usual_image(model)) - (height // rows) * (width // columns)


def usual_image(model: nn.Module) -> Batch:
    """One blank image of the size that the model was made for, on its device."""
    return _blank(model, *image_size(model))


def image_size(model: nn.Module) -> tuple[int, int]:
    """Height and width of the images that the model was made for."""
    return _pair(_vision_config(model).image_size)


def is_image(value: Any) -> bool:
    """Whether something is an image, or pixel values."""
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim in (2, 3)
    return any(kind.__module__ == "PIL.Image" for kind in type(value).__mro__)  # Pillow may not be there


def _blank(model: nn.Module, height: int, width: int) -> Batch:
    pixels = torch.zeros(1, _channels(model), height, width, dtype=model.dtype, device=model.device)
    return {"pixel_values": pixels}


def _channels(model: nn.Module) -> int:
    return getattr(_vision_config(model), "num_channels", 3)


def _vision_config(model: nn.Module) -> PreTrainedConfig:
    """What describes the images: of a dual model, a part of the config."""
    return getattr(model.config, "vision_config", model.config)


def _pair(size: int | Iterable[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _found(sample: Any, model: nn.Module) -> Any:
    """The image in a sample: pixel values, something that Pillow made or can open, or an array; `None` if missing."""
    value = sample
    if isinstance(value, Mapping) and "pixel_values" in value:
        check_inputs(value)
        value = torch.as_tensor(np.asarray(value["pixel_values"]))
        value = value[0] if value.ndim == 4 and len(value) == 1 else value  # a batch of one
    elif isinstance(value, Mapping):
        value = value[_image_column(value, model)]
    elif isinstance(value, (tuple, list)) and value:  # image and label, as of torchvision's data sets
        value = value[0]
    if value is None or is_image(value) or _is_file(value) or _is_undecoded(value):
        return value
    kind = "text" if isinstance(value, str) else type(value).__name__
    raise ValueError(
        f"{model.config.model_type!r} is a model of images, but the calibration data hold {kind}, {sample!r:.80}: give "
        "images, paths of image files, pixel values, or a data set with a column of images."
    )


def _image_column(sample: Mapping[str, Any], model: nn.Module) -> str:
    images = [name for name, value in sample.items() if value is None or is_image(value) or _is_undecoded(value)]
    there = [name for name in images if sample[name] is not None]
    known = [name for name in _IMAGE_COLUMNS if name in images] or there or images
    if len(known) != 1 and not set(known) & set(_IMAGE_COLUMNS):
        raise ValueError(
            f"cannot tell the column of images among {', '.join(map(str, sample)) or 'none'}, and "
            f"{model.config.model_type!r} is a model of images: rename it to 'image'."
        )
    return known[0]


def _is_file(value: Any) -> bool:
    return isinstance(value, (str, Path)) and Path(value).suffix.lower() in IMAGE_SUFFIXES


def _is_undecoded(value: Any) -> bool:
    """Whether this is an image as `datasets` keeps it."""
    return isinstance(value, Mapping) and set(value) == {"bytes", "path"}


def _is_processed(image: Any) -> bool:
    return isinstance(image, (np.ndarray, Tensor)) and torch.as_tensor(image).is_floating_point()


def _image_processor(processor: Any) -> Any:
    processor = getattr(processor, "image_processor", processor)
    if not isinstance(processor, ImageProcessingMixin):
        given = "none" if processor is None else type(processor).__name__
        raise ValueError(
            f"images need an image processor, got {given}: pass processor=AutoImageProcessor.from_pretrained(...), or "
            "pixel values."
        )
    return processor


def _preparation(model: nn.Module, processor: Any) -> Callable[[Any], Tensor]:
    """What makes pixel values, of shape (channels, height, width), of an image."""
    channels, processor = _channels(model), _image_processor(processor)
    if channels not in _MODES:
        raise ValueError(f"this model takes images of {channels} channels, which files do not have: give pixel values.")

    def prepare(image: Any) -> Tensor:
        converted = _converted(image, _MODES[channels])
        try:
            return processor(images=[converted], return_tensors="pt")["pixel_values"][0]
        except ValueError as error:
            raise ValueError(
                f"{type(processor).__name__} cannot take an image of the model's {channels} channels, "
                f"{converted.width} x {converted.height} pixels ({error}): pass the model's own, or give pixel values."
            ) from error

    return prepare


def _read(images: Mapping[int, Any], ready: Callable[[Any], Tensor], unreadable: str) -> list[Tensor | None]:
    """What `ready` makes of each image; `None` for one that cannot be read."""
    pixels, problems = [], []
    for row, image in images.items():
        try:
            if image is None:
                raise OSError("there is none")
            pixels.append(ready(image))
        except (OSError, SyntaxError) as error:  # the latter is what Pillow makes of some damaged PNG files
            problems.append(f"{_name_of(image) or f'row {row}'} ({error})")
            pixels.append(None)
            if unreadable == "stop":
                raise ValueError(
                    f"a calibration image cannot be read: {problems[0]}. Mend or remove it, or take unreadable='skip'."
                ) from error
    if len(problems) == len(images):
        raise ValueError(f"none of the {len(images)} calibration images can be read; the first: {problems[0]}.")
    for problem in problems:
        logger.warning(f"left out of the calibration data, as it cannot be read: {problem}.")
    if problems:
        logger.warning(f"{len(images) - len(problems)} of {len(images)} calibration images are left.")
    return pixels


def _converted(image: Any, mode: str):
    """Pillow's image of this mode."""
    pillow = _pillow()
    try:
        opened = _opened(image)
    except pillow.Image.DecompressionBombError as error:  # what a damaged header looks like, too
        raise OSError(str(error)) from error
    if opened.mode in ("I", "F"):
        raise ValueError(
            f"an image must have numbers from 0 to 255, or to 65535 (mode 'I;16'), got mode {opened.mode!r} of unknown "
            f"range, {_name_of(image) or repr(image):.120}: scale it to 0 to 255 and convert it to 'L'."
        )
    if opened.mode.startswith("I;16"):  # Pillow would cut off what is above 255
        opened = pillow.Image.fromarray((np.asarray(opened) / 257).round().astype(np.uint8))
    return opened.convert(mode)


def _opened(image: Any):
    """Pillow's image; a file is read, turned upright, as `datasets` does, and closed."""
    if not _is_undecoded(image) and not isinstance(image, (str, Path)):
        return _image(image)
    file = image
    if _is_undecoded(image):
        file = image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])
        if isinstance(file, str) and not Path(file).exists():  # somewhere on the Hub, or in an archive
            from datasets import Image  # slow to import

            return Image().decode_example(image)
    pillow = _pillow()
    with pillow.Image.open(file) as opened:
        return pillow.ImageOps.exif_transpose(opened)


def _image(image: Any):
    if isinstance(image, (np.ndarray, Tensor)):
        array = np.asarray(image)
        if array.dtype != np.uint8:
            raise ValueError(
                f"an image given as an array must have numbers from 0 to 255 (uint8), got {array.dtype}: give "
                "floating-point arrays only if all of them are pixel values."
            )
        if array.ndim == 3 and array.shape[0] in _MODES and array.shape[2] not in _MODES:
            array = array.transpose(1, 2, 0)  # (channels, height, width) -> (height, width, channels)
        return _pillow().Image.fromarray(array.squeeze(2) if array.ndim == 3 and array.shape[2] == 1 else array)
    return image


def _name_of(image: Any) -> str | None:
    if _is_undecoded(image):
        return image["path"]
    return str(image) if isinstance(image, (str, Path)) else getattr(image, "filename", None)


def _pillow():
    """Pillow, which only images need."""
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ImportError("calibration with images needs Pillow: pip install pillow.") from error
    return PIL
