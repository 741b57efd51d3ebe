"""A tiny sample for a model of which nothing is known but its config and its forward's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..models.examples import example_of
from ..models.identity import config_of, device_of, dtype_of, main_input_of
from ..running.batch import Batch
from ..running.forward import check_runs, check_sequences

_TOKENS, _FEWER = 10, 7  # of a text, and of what a decoder is given beside it
_PIXELS = 64
_WAVE = 4000
_LEAST_TOKENS = 2  # of a sample that was given

Maker = Callable[[Any, torch.Generator], Tensor]
"""Makes an input of a model's config."""


def tiny_sample(model: nn.Module) -> Batch:
    """One sample of texts, images or sounds that the model runs on, drawn with a fixed seed, on the model's device; of
    a plain module, the first of its example inputs.

    Args:
        model: the model, frozen.

    Raises:
        ValueError: the model reads something else, or does not run on what was made up; names what it takes.
    """
    if (example := example_of(model)) is not None:
        return checked_sample(model, {name: value[:1] for name, value in example.items()})
    check_sequences(model)
    main = main_input_of(model)
    takes = inspect.signature(model.forward).parameters
    if main not in _MAKERS:
        raise ValueError(
            f"{type(model).__name__} reads {main or 'inputs of other names'}, of which no sample can be made up; its "
            f"forward takes {', '.join(takes)}: give one, as in find_groups(model, sample), before all else."
        )
    problems = []
    for makers in _choices(main, takes):
        sample = _sample(model, makers)
        try:
            check_runs(model, sample)
        except ValueError as error:
            problems.append(error)
        else:
            return sample
    raise problems[0]


def checked_sample(model: nn.Module, sample: Batch) -> Batch:
    """A sample that was given, if groups can be told by it.

    Args:
        model: the model, frozen.
        sample: its inputs.

    Raises:
        ValueError: it is empty, holds one token alone, or the model does not run on it.
    """
    sample = dict(sample)
    short = [name for name in sample if name.endswith("_ids") and getattr(sample[name], "ndim", 0) == 2]
    if not any(isinstance(value, Tensor) and value.numel() for value in sample.values()):
        raise ValueError(f"the sample holds no tensor with values ({', '.join(sample) or 'nothing at all'}).")
    if short and all(sample[name].shape[1] < _LEAST_TOKENS for name in short):
        raise ValueError(
            f"the sample has {sample[short[0]].shape[1]} token in {' and '.join(short)}: attention to a single token "
            f"is the same whatever its heads do, so that they cannot be told apart. Give at least {_LEAST_TOKENS} "
            "tokens that differ."
        )
    check_runs(model, sample)
    return sample


def _choices(main: str, takes: Iterable[str]) -> Iterator[Mapping[str, Maker]]:
    """Makers of a model's inputs, to be tried one after the other, those first by which most can be told."""
    # Of as many tokens, a decoder's could not be told from those of the encoder.
    fewer = {"decoder_input_ids": _fewer_words} if "decoder_input_ids" in takes else {}
    usual = {main: _MAKERS[main]}
    yield usual | fewer
    if fewer:
        yield usual
    if main == "input_features":  # a row is a step in time, as in models that make no spectrum of one length
        yield {main: _steps} | fewer
    if main == "input_ids":  # some models look for the ends of texts, in a decoder in the same places
        yield {main: _ended_words} | dict.fromkeys(fewer, _ended_words)
    everything = {name: _MAKERS[name] for name in takes if name in _MAKERS}
    if not everything.keys() <= usual.keys():  # a text and an image, say
        yield usual | fewer | everything


def _sample(model: nn.Module, makers: Mapping[str, Maker]) -> Batch:
    """Inputs by their makers, on the model's device."""
    generator, device, dtype = torch.Generator().manual_seed(0), device_of(model), dtype_of(model)
    sample = {name: make(config_of(model), generator) for name, make in makers.items()}
    return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in sample.items()}


def _words(config: Any, generator: torch.Generator, tokens: int = _TOKENS) -> Tensor:
    """Token ids that differ from each other, without those that have a meaning of their own."""
    text = config.get_text_config()
    special = {value for name, value in text.to_dict().items() if name.endswith("_token_id")}
    drawn = torch.randperm(_value(text, ("vocab_size",), 50), generator=generator).tolist()
    words = [word for word in drawn if word not in special] or drawn
    return torch.tensor([[words[place % len(words)] for place in range(tokens)]])


def _fewer_words(config: Any, generator: torch.Generator) -> Tensor:
    return _words(config, generator, _FEWER)


def _ended_words(config: Any, generator: torch.Generator) -> Tensor:
    words, end = _words(config, generator), getattr(config.get_text_config(), "eos_token_id", None)
    end = end[0] if isinstance(end, (list, tuple)) and end else end
    return words if end is None else torch.cat([words[:, :-1], torch.tensor([[end]])], 1)


def _image(config: Any, generator: torch.Generator) -> Tensor:
    parts = (getattr(config, name, None) for name in ("vision_config", "encoder"))
    vision = next((part for part in parts if hasattr(part, "image_size")), getattr(config, "vision_config", config))
    size = _value(vision, ("image_size", "img_size", "input_size"), None)
    if size is not None:  # that of a backbone goes first: DPT's own config has one in any case
        size = _value(getattr(vision, "backbone_config", None), ("image_size",), size)
    size = size or _PIXELS
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    return torch.randn(1, _value(vision, ("num_channels", "in_chans"), 3), height, width, generator=generator)


def _wave(config: Any, generator: torch.Generator) -> Tensor:
    if hasattr(config, "num_mel_bins") and hasattr(config, "patch_size"):  # AST cuts a spectrum into patches
        return torch.randn(1, config.max_length, config.num_mel_bins, generator=generator)
    return torch.randn(1, _WAVE, generator=generator)


def _spectrum(config: Any, generator: torch.Generator) -> Tensor:
    audio = getattr(config, "audio_config", config)
    bins = _value(audio, ("num_mel_bins", "input_feat_per_channel", "feature_size"), 80)
    return torch.randn(1, bins, 2 * _value(audio, ("max_source_positions",), _PIXELS), generator=generator)


def _steps(config: Any, generator: torch.Generator) -> Tensor:
    """A spectrum of which each row is a step in time."""
    names = ("feature_projection_input_dim", "input_feat_per_channel", "num_mel_bins", "feature_size")
    return torch.randn(1, _PIXELS, _value(config, names, 80), generator=generator)


def _value(config: Any, names: Iterable[str], default: int | None) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), default)


_MAKERS = {
    "input_ids": _words,
    "pixel_values": _image,
    "input_values": _wave,
    "input_features": _spectrum,
}
