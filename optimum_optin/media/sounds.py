"""Calibration sounds: from whatever the user has to batches of a model's input values or features."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoProcessor
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.utils import logging

from ..models.identity import dtype_of, main_input_of, type_of
from ..reading.samples import is_missing
from ..reading.sound_files import is_sound, open_sound, resampled, sound_problem
from ..running.batch import Batch
from ..running.forward import takes
from ..running.processes import is_main
from .frames import MASK, least_samples, reads_waves
from .one_by_one import read_each
from .values import tensor_of

logger = logging.get_logger(__name__)

_COLUMNS = ("audio", "speech", "sound", "wav", "wave", "waveform")
_SECONDS = 30  # of a sound, if nothing else bounds it: what Whisper hears at once
_RATE = 16_000  # of waves whose rate nobody said, only to bound them
_CUT = 0.75  # a wave joins a batch only if that is no shorter than this share of it
_PLAUSIBLE_RATE = 4000


def sound_batches(
    samples: Mapping[int, Any],
    model: nn.Module,
    processor: Any,
    *,
    batch_size: int,
    max_length: int | None = None,
    unreadable: str = "skip",
    **_of_texts: Any,
) -> list[Batch]:
    """Batches of what the model reads, in its precision, sounds of similar length together.

    Where the feature extractor makes an attention mask, shorter sounds are filled up; models that take none (wav2vec2
    with "group" norm) would hear that filling, so that waves of a batch are cut to the shortest instead.

    Args:
        samples: row -> sound, in the form that `sound_in` takes.
        model: the model the batches are for.
        processor: its feature extractor, or a processor that holds one; not needed for what it would make.
        batch_size: sounds per batch.
        max_length: frames of a sound at most; `None` for 30 seconds. What is longer is cut.
        unreadable: what to do about a sound that cannot be read, is empty, silent, not finite or shorter than the
            model's front end: `"skip"` leaves it out with a warning that names it, `"stop"` raises.
        **_of_texts: options for reading texts; they are ignored.

    Raises:
        ValueError: something that is no sound, sounds without a feature extractor, or none that can be read.
    """
    name = main_input_of(model)
    found = {row: sound_in(sample, model) for row, sample in samples.items()}
    there = [sound for sound in found.values() if sound is not None]
    ready = _as_they_are(model) if there and all(map(_is_processed, there)) else preparation(model, processor)
    read = read_each(found, ready, unreadable, "sound")
    sounds = _bounded([each for each in read if each is not None], model, processor, max_length)
    sounds = [{**each, name: each[name].to(dtype_of(model))} for each in sounds]
    sounds.sort(key=lambda each: each[name].shape[0])
    batches: list[list[dict[str, Tensor]]] = []
    for sound in sounds:
        if not batches or len(batches[-1]) == batch_size or not _go_together(batches[-1][0], sound, name):
            batches.append([])
        batches[-1].append(sound)
    return [together(part, name, fill=_filling(processor)) for part in batches]


def preparation(
    model: nn.Module, processor: Any, problem: Callable[[np.ndarray], str | None] = sound_problem
) -> Callable[[Any], dict[str, Tensor]]:
    """The function that makes the model's inputs of a sound, without a batch dimension.

    Args:
        model: the model.
        processor: its feature extractor, or a processor that holds one.
        problem: says what is wrong with a wave, if anything is.

    Raises:
        ValueError: there is no feature extractor.
    """
    extractor, name = feature_extractor(processor), main_input_of(model)
    rate = extractor.sampling_rate
    least = least_samples(model) if reads_waves(model) else 1
    told: set[int] = set()

    def prepare(sound: Any) -> dict[str, Tensor]:
        if _is_processed(sound):
            raise ValueError("some calibration sounds are input values already and others are not: give one kind.")
        wave = open_sound(sound)
        if wave.rate not in (None, rate, *told) and is_main():
            told.add(wave.rate)
            logger.warning(f"sounds of {wave.rate:,} samples per second are resampled to the model's {rate:,}.")
        values = resampled(wave, rate)
        if (what := problem(values)) is not None:
            raise OSError(what)
        if len(values) < least:
            raise OSError(f"it has {len(values)} samples, and the model's first frame takes {least}")
        made = extractor(values, sampling_rate=rate, return_tensors="pt")
        return {each: torch.as_tensor(made[each])[0] for each in (name, MASK) if each in made and takes(model, each)}

    return prepare


def together(sounds: Sequence[Mapping[str, Tensor]], name: str, fill: float = 0.0) -> Batch:
    """A batch of sounds: filled up where they have a mask, else cut to the shortest."""
    lengths = [len(each[name]) for each in sounds]
    if all(MASK in each for each in sounds):
        padded = [_filled(each[name], max(lengths), fill) for each in sounds]
        masks = [_filled(each[MASK].long(), max(len(each[MASK]) for each in sounds), 0) for each in sounds]
        return {name: torch.stack(padded), MASK: torch.stack(masks)}
    return {name: torch.stack([each[name][: min(lengths)] for each in sounds])}


class SoundProcessor:
    """Loads what a checkpoint reads sounds with: a processor with a tokenizer, or the feature extractor alone."""

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **options: Any) -> Any:
        """The processor of a checkpoint whose tokenizer knows words, else its feature extractor."""
        try:
            processor = AutoProcessor.from_pretrained(name, **options)
            tokenizer = getattr(processor, "tokenizer", None)
            # Without files of a tokenizer, transformers v5 makes one that knows special tokens only.
            if tokenizer is not None and len(tokenizer) > len(tokenizer.all_special_ids):
                return processor
        except (OSError, ValueError, TypeError):  # each of which a tokenizer without files may raise
            pass
        return AutoFeatureExtractor.from_pretrained(name, **options)


def feature_extractor(processor: Any) -> Any:
    """The feature extractor of sounds, which a processor with a tokenizer holds.

    Raises:
        ValueError: there is none.
    """
    found = getattr(processor, "feature_extractor", processor)
    if not isinstance(found, SequenceFeatureExtractor):
        given = "none" if processor is None else type(processor).__name__
        raise ValueError(
            f"sounds need a feature extractor, got {given}: pass processor=AutoFeatureExtractor.from_pretrained(...) "
            "or AutoProcessor's, or what it makes of them."
        )
    return found


def sound_in(sample: Any, model: nn.Module) -> Any:
    """The sound in a sample, not read yet; what a feature extractor made is a dict of tensors; `None` if missing.

    Args:
        sample: a sound in a form that `open_sound` takes; a tuple that begins with one; or a dict that holds one under
            `audio` or in the only column with sounds, or the model's input under its own name.
        model: the model.

    Raises:
        ValueError: there is no sound in it, or it cannot be told where.
    """
    name = main_input_of(model)
    if isinstance(sample, Mapping) and name in sample:
        return _processed(sample, name)
    value = sample
    if isinstance(value, (tuple, list)) and value and not isinstance(value[0], (int, float)):
        _check_labels(value)
        value = value[0]
    elif isinstance(value, Mapping) and not is_sound(value) and set(value) != {"bytes", "path"}:
        value = value[sound_column(value, model)]
    if is_missing(value):
        return None
    if _may_be_sound(value):
        return value
    kind = "text" if isinstance(value, str) else type(value).__name__
    raise ValueError(
        f"{type_of(model)!r} is a model of sounds, but the calibration data hold {kind}, {sample!r:.80}: give arrays "
        "of one dimension, dicts with 'array' and 'sampling_rate', paths of sound files, or a data set with a column "
        f"of sounds or with {name!r}."
    )


def sound_column(sample: Mapping[str, Any], model: nn.Module) -> str:
    """The column that holds the sound of a sample.

    Raises:
        ValueError: it cannot be told.
    """
    sounds = [name for name, value in sample.items() if is_sound(value) or isinstance(value, bytes)]
    sounds = sounds or [name for name, value in sample.items() if _is_wave(value)]
    known = [name for name in _COLUMNS if name in sample and (name in sounds or is_missing(sample[name]))]
    found = known or sounds
    if len(found) != 1:
        raise ValueError(
            f"cannot tell the column of sounds among {', '.join(map(str, sample)) or 'none'}, and {type_of(model)!r} "
            "is a model of sounds: rename it to 'audio'."
        )
    return found[0]


def _may_be_sound(value: Any) -> bool:
    undecoded = isinstance(value, Mapping) and set(value) == {"bytes", "path"}
    file = isinstance(value, (os.PathLike, bytes)) or (isinstance(value, str) and os.path.isfile(value))
    return is_sound(value) or undecoded or file or _is_wave(value)


def _is_wave(value: Any) -> bool:
    """Whether this is an array, or a list of numbers."""
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim in (1, 2)
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], float)


def _check_labels(parts: Sequence[Any]) -> None:
    """Raise if what follows a sound in a tuple is likely its sampling rate, which a label would hide."""
    if len(parts) > 1 and isinstance(parts[1], int) and parts[1] >= _PLAUSIBLE_RATE:
        raise ValueError(
            f"calibration data are tuples with {parts[1]} after the sound: if that is its sampling rate, give dicts "
            "{'array': ..., 'sampling_rate': ...}; if it is a label, give the sounds alone."
        )


def _processed(sample: Mapping[str, Any], name: str) -> dict[str, Tensor] | None:
    """What a feature extractor made of one sound; a batch of one loses its first dimension."""
    if is_missing(sample[name]):
        return None
    names = [each for each in (name, MASK) if sample.get(each) is not None]
    made = {each: tensor_of(sample[each]) for each in names}
    mask = made.get(MASK)
    if (mask is not None and mask.dim() == 2) or (mask is None and made[name].dim() > 1 and len(made[name]) == 1):
        made = {each: value[0] for each, value in made.items()}
    return made


def _is_processed(sound: Any) -> bool:
    return isinstance(sound, dict) and all(isinstance(value, Tensor) for value in sound.values())


def _as_they_are(model: nn.Module) -> Callable[[Any], dict[str, Tensor]]:
    name = main_input_of(model)
    least = least_samples(model) if reads_waves(model) else 1

    def ready(sound: dict[str, Tensor]) -> dict[str, Tensor]:
        values, mask = sound[name], sound.get(MASK)
        if mask is not None and mask.dim() == 1 and len(mask) == len(values):  # padding is added anew
            values, mask = values[mask.bool()], mask[mask.bool()]
        if values.numel() == 0 or not values.is_floating_point():
            raise OSError(f"its {name} are empty, or no floating-point numbers")
        if values.dim() == 1 and len(values) < least:
            raise OSError(f"it has {len(values)} samples, and the model's first frame takes {least}")
        return {name: values} if mask is None or not takes(model, MASK) else {name: values, MASK: mask}

    return ready


def _bounded(
    sounds: list[dict[str, Tensor]], model: nn.Module, processor: Any, max_length: int | None
) -> list[dict[str, Tensor]]:
    """The sounds, waves cut to the greatest length; features have that of their extractor."""
    if not reads_waves(model):
        return sounds
    rate = getattr(getattr(processor, "feature_extractor", processor), "sampling_rate", _RATE)
    limit = _SECONDS * rate if max_length is None else least_samples(model, max_length)
    longer = sum(len(each[main_input_of(model)]) > limit for each in sounds)
    if longer and max_length is None and is_main():
        logger.warning(f"{longer} of {len(sounds)} sounds are longer than {_SECONDS} seconds, and cut to that.")
    return [{name: value[:limit] for name, value in each.items()} for each in sounds]


def _go_together(shortest: Mapping[str, Tensor], sound: Mapping[str, Tensor], name: str) -> bool:
    if (MASK in shortest) != (MASK in sound) or shortest[name].shape[1:] != sound[name].shape[1:]:
        return False
    return MASK in sound or len(shortest[name]) >= _CUT * len(sound[name])


def _filling(processor: Any) -> float:
    return getattr(getattr(processor, "feature_extractor", processor), "padding_value", 0.0)


def _filled(values: Tensor, length: int, fill: float) -> Tensor:
    missing = [0, 0] * (values.dim() - 1) + [0, length - len(values)]
    return torch.nn.functional.pad(values, missing, value=fill)
