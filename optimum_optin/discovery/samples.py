"""A tiny sample for a model of which nothing is known but its config and its forward's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..running.batch import Batch

_TOKENS, _FEWER = 10, 7  # of a text, and of what a decoder is given beside it
_PIXELS = 64
_WAVE = 4000


def tiny_sample(model: nn.Module) -> Batch:
    """One sample of texts, images or sounds, drawn with a fixed seed, on the model's device.

    Raises:
        ValueError: the model reads something else; names what it takes.
    """
    generator = torch.Generator().manual_seed(0)
    main = getattr(model, "main_input_name", None)
    takes = inspect.signature(model.forward).parameters
    names = [main, "decoder_input_ids"] if "decoder_input_ids" in takes else [main]
    if main not in _MAKERS:
        raise ValueError(
            f"{type(model).__name__} reads {main or 'inputs of other names'}, of which no sample can be made up; its "
            f"forward takes {', '.join(takes)}: give one, as in find_groups(model, sample), before all else."
        )
    parameter = next(model.parameters())
    sample = {name: _MAKERS[name](getattr(model, "config", None), generator) for name in names}
    return {
        name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
        for name, value in sample.items()
    }


def _words(config: Any, generator: torch.Generator, tokens: int = _TOKENS) -> Tensor:
    """Token ids that differ from each other, without those that have a meaning of their own."""
    text = config.get_text_config()
    special = {value for name, value in text.to_dict().items() if name.endswith("_token_id")}
    drawn = torch.randperm(_value(text, ("vocab_size",), 50), generator=generator).tolist()
    words = [word for word in drawn if word not in special] or drawn
    return torch.tensor([[words[place % len(words)] for place in range(tokens)]])


def _fewer_words(config: Any, generator: torch.Generator) -> Tensor:
    return _words(config, generator, _FEWER)


def _image(config: Any, generator: torch.Generator) -> Tensor:
    vision = getattr(config, "vision_config", config)
    size = _value(vision, ("image_size", "img_size", "input_size"), _PIXELS)
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    return torch.randn(1, _value(vision, ("num_channels", "in_chans"), 3), height, width, generator=generator)


def _wave(config: Any, generator: torch.Generator) -> Tensor:
    return torch.randn(1, _WAVE, generator=generator)


def _spectrum(config: Any, generator: torch.Generator) -> Tensor:
    audio = getattr(config, "audio_config", config)
    bins = _value(audio, ("num_mel_bins", "input_feat_per_channel", "feature_size"), 80)
    return torch.randn(1, bins, 2 * _value(audio, ("max_source_positions",), _PIXELS), generator=generator)


def _value(config: Any, names: Iterable[str], default: int) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), default)


_MAKERS = {
    "input_ids": _words,
    "decoder_input_ids": _fewer_words,
    "pixel_values": _image,
    "input_values": _wave,
    "input_features": _spectrum,
}
