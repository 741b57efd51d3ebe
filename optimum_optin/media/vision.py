"""Models of images: which images they take, and how many tokens they make of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..architectures.group import stack_of
from ..discovery.find import find_groups
from ..discovery.streams import first_numbers
from ..running.batch import Batch
from ..running.facts import measured_once
from ..running.feature_maps import as_tokens
from ..running.forward import call_model
from ..running.freezing import frozen

_FEW_SIZES = 4  # of images, that are all run before work begins
_PIXELS = 64  # of an image that models are counted with whose config names no size, nor were they traced with images
_MOST_TOKENS = 100_000  # no image of more is made only to find out that the model does not take it
_OTHER_SIZES = (
    "A model that takes images of other sizes only with interpolate_pos_encoding=True is pruned at its own size; the "
    "pruned model takes the others as before."
)


def image_tokens(model: nn.Module, batch: Batch) -> int | None:
    """How many tokens the first layer gets of each image, class token and the like included; `None` for text."""
    return next(iter(tokens_of_stacks(model, batch).values())) if "pixel_values" in batch else None


def tokens_of_stacks(model: nn.Module, batch: Batch) -> Mapping[str, int]:
    """Stack -> how many tokens its first layer gets of each image: patches, places of a feature map, queries.

    Args:
        model: the model.
        batch: images of one size.
    """
    size = tuple(batch["pixel_values"].shape[1:])
    return measured_once(model, ("image tokens", size), lambda: _count_tokens(model, batch))


@torch.no_grad()
def _count_tokens(model: nn.Module, batch: Batch) -> dict[str, int]:
    groups, first = find_groups(model), {}
    for name, path in groups.layers.items():
        if groups.inputs[stack_of(name)] == "pixel_values":
            first.setdefault(stack_of(name), (path, name in groups.maps))
    counts: dict[str, int] = {}

    def counting(stack: str, is_map: bool) -> Callable[[nn.Module, tuple, dict[str, Any]], None]:
        def count(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            hidden = first_numbers((*args, *kwargs.values()))
            if hidden is not None:
                counts.setdefault(stack, as_tokens(hidden, is_map and hidden.dim() > 3)[..., 0].numel())
            if counts.keys() == first.keys():
                raise _Counted

        return count

    with ExitStack() as hooks:
        for stack, (path, is_map) in first.items():
            module, hook = model.get_submodule(path), counting(stack, is_map)
            hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True).remove)
        with suppress(_Counted):
            call_model(model, {name: value[:1] for name, value in batch.items()})
    return {stack: counts.get(stack, 1) for stack in first}  # one that does not run has no tokens to compare


class _Counted(Exception):
    """Ends a forward pass early."""


@torch.no_grad()
def check_images(batches: Sequence[Batch], model: nn.Module) -> None:
    """Raise if the model cannot take these batches, found by running it on one image of each size (of many, of a few).

    Raises:
        ValueError: pixel values that have another shape, type or size or are not finite; or a `pixel_mask` that does
            not fit them.
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
        _check_mask(batch, number)
    shapes = sorted({batch["pixel_values"].shape[1:] for batch in batches}, key=lambda shape: shape.numel())
    for shape in shapes if len(shapes) <= _FEW_SIZES else (shapes[0], shapes[-1]):
        batch = next(batch for batch in batches if batch["pixel_values"].shape[1:] == shape)
        inputs = {name: value[:1].to(model.device) for name, value in batch.items()}
        try:
            with frozen(model):
                call_model(model, inputs)
        except (ValueError, RuntimeError) as error:
            if shape[1:] == size:
                raise ValueError(
                    f"this {model.config.model_type!r} model cannot run on the calibration data: {error}."
                ) from error
            raise ValueError(
                f"this {model.config.model_type!r} model cannot take images of {shape[1]} x {shape[2]} pixels, it was "
                f"made for {size[0]} x {size[1]}: resize them with its image processor ({error}). {_OTHER_SIZES}"
            ) from error


def _check_mask(batch: Batch, number: int) -> None:
    mask, pixels = batch.get("pixel_mask"), batch["pixel_values"]
    if mask is None:
        return
    if mask.shape != (len(pixels), *pixels.shape[2:]):
        raise ValueError(
            f"pixel_mask of calibration batch {number} must have the shape of pixel_values without channels, "
            f"{(len(pixels), *pixels.shape[2:])}, got {tuple(mask.shape)}."
        )
    if not mask.flatten(1).any(1).all():
        raise ValueError(f"calibration batch {number} holds an image that is all padding by its pixel_mask: drop it.")


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
        patch = _patch(model, usual)
        patches = tokens - usual + (height // patch[0]) * (width // patch[1])
        rows = max((rows for rows in range(1, math.isqrt(max(patches, 0)) + 1) if patches % rows == 0), default=0)
        batch = _blank(model, rows * patch[0], patches // rows * patch[1] if rows else 0)
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
    usual = image_tokens(model, usual_image(model))
    rows, columns = _patch(model, usual)
    return usual - (height // rows) * (width // columns)


def usual_image(model: nn.Module) -> Batch:
    """One blank image of the size that the model was made for, on its device."""
    return _blank(model, *image_size(model))


def image_size(model: nn.Module) -> tuple[int, int]:
    """Height and width of the images that the model was made for; if its config says nothing, those it was traced with.

    Pyramids (SegFormer, DETR) take images of any size, and have none of their own.
    """
    size = next((size for config in _configs(model) if (size := getattr(config, "image_size", None))), None)
    if size is not None:
        return _pair(size)
    sample = find_groups(model).sample or {}
    return tuple(sample["pixel_values"].shape[-2:]) if "pixel_values" in sample else (_PIXELS, _PIXELS)


def _patch(model: nn.Module, tokens: int) -> tuple[int, int]:
    """Height and width of the pixels that a token is made of, by the config or else by the tokens of a usual image."""
    size = next((size for config in _configs(model) if (size := getattr(config, "patch_size", None))), None)
    if size is not None:
        return _pair(size)
    height, width = image_size(model)
    side = max(1, round((height * width / tokens) ** 0.5))
    return side, side


def channels_of(model: nn.Module) -> int:
    """How many channels the model's images have."""
    return getattr(_vision_config(model), "num_channels", 3)


def _blank(model: nn.Module, height: int, width: int) -> Batch:
    pixels = torch.zeros(1, channels_of(model), height, width, dtype=model.dtype, device=model.device)
    return {"pixel_values": pixels}


def _configs(model: nn.Module) -> list[PreTrainedConfig]:
    """Configs that may say how large images and patches are: that of a backbone, if there is one, and that around it.

    DPT's own config has a size and a patch in any case, which a backbone in it does not go by.
    """
    config = _vision_config(model)
    return [each for each in (getattr(config, "backbone_config", None), config) if each is not None]


def _vision_config(model: nn.Module) -> PreTrainedConfig:
    """The config that describes the images; in a dual model, it is a part of the whole."""
    return getattr(model.config, "vision_config", model.config)


def _pair(size: int | Iterable[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
