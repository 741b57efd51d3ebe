"""Models of images: which images they take, and how many tokens they make of one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..architectures.group import stack_of
from ..discovery.find import find_layers, stack_inputs
from ..running.batch import Batch
from ..running.facts import measured_once
from ..running.forward import call_model, logits_of, run_model
from ..running.freezing import frozen

_MOST_TOKENS = 100_000  # no image of more is made only to find out that the model does not take it
_OTHER_SIZES = (
    "A model that takes images of other sizes only with interpolate_pos_encoding=True is pruned at its own size; the "
    "pruned model takes the others as before."
)


def image_tokens(model: nn.Module, batch: Batch) -> int | None:
    """How many tokens the first layer gets of each image, class token and the like included; `None` for text."""
    if "pixel_values" not in batch:
        return None
    size = tuple(batch["pixel_values"].shape[1:])
    return measured_once(model, ("image tokens", size), lambda: _count_tokens(model, batch))


@torch.no_grad()
def _count_tokens(model: nn.Module, batch: Batch) -> int:
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
            call_model(model, {name: value[:1] for name, value in batch.items()})
    finally:
        handle.remove()
    return counts[0]


class _Counted(Exception):
    """Ends a forward pass early."""


@torch.no_grad()
def check_images(batches: Sequence[Batch], model: nn.Module) -> None:
    """Raise if the model cannot take these batches, found by running it on one image of each size.

    Raises:
        ValueError: pixel values that have another shape, type or size or are not finite; or outputs that are maps of
            pixels.
    """
    channels, size = channels_of(model), image_size(model)
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
                logits = logits_of(run_model(model, inputs))
        except (ValueError, RuntimeError) as error:
            if shape[1:] == size:
                raise ValueError(
                    f"this {model.config.model_type!r} model cannot run on the calibration data: {error}."
                ) from error
            raise ValueError(
                f"this {model.config.model_type!r} model cannot take images of {shape[1]} x {shape[2]} pixels, it was "
                f"made for {size[0]} x {size[1]}: resize them with its image processor ({error}). {_OTHER_SIZES}"
            ) from error
        if logits is not None and logits.dim() > 3:
            raise ValueError(
                f"{type(model).__name__} cannot be pruned: its logits have the shape {tuple(logits.shape)}, and maps "
                "of labels (segmentation) are not supported yet. AutoModel loads the model without that head."
            )


def check_inputs(inputs: Iterable[str]) -> None:
    """Raise if one of these inputs says how to read images rather than what is in them.

    Raises:
        ValueError: `interpolate_pos_encoding` is among them.
    """
    if "interpolate_pos_encoding" in inputs:
        raise ValueError(f"calibration data cannot hold interpolate_pos_encoding: leave it out. {_OTHER_SIZES}")


def probe_images(model: nn.Module, tokens: int) -> Batch:
    """One blank image of which the model makes `tokens` tokens, on its device.

    Raises:
        ValueError: there is no such image.
    """
    batch = usual_image(model)
    height, width = image_size(model)
    usual = image_tokens(model, batch)
    if tokens > _MOST_TOKENS:
        raise ValueError(f"tokens={tokens} is not what this model makes of an image: {usual}.")
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
    """How many tokens come before an image's patches: class, distillation and register tokens."""
    height, width = image_size(model)
    rows, columns = _pair(_vision_config(model).patch_size)
    return image_tokens(model, usual_image(model)) - (height // rows) * (width // columns)


def usual_image(model: nn.Module) -> Batch:
    """One blank image of the size that the model was made for, on its device."""
    return _blank(model, *image_size(model))


def image_size(model: nn.Module) -> tuple[int, int]:
    """Height and width of the images that the model was made for."""
    return _pair(_vision_config(model).image_size)


def channels_of(model: nn.Module) -> int:
    """How many channels the model's images have."""
    return getattr(_vision_config(model), "num_channels", 3)


def _blank(model: nn.Module, height: int, width: int) -> Batch:
    pixels = torch.zeros(1, channels_of(model), height, width, dtype=model.dtype, device=model.device)
    return {"pixel_values": pixels}


def _vision_config(model: nn.Module) -> PreTrainedConfig:
    """The config that describes the images; in a dual model, it is a part of the whole."""
    return getattr(model.config, "vision_config", model.config)


def _pair(size: int | Iterable[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
