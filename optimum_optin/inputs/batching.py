"""Calibration data: from whatever the user has to batches of model inputs.

Samples are drawn in `samples.py`, and read and checked by the model's modality (`modalities.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..discovery.find import stack_inputs
from ..media.vision import check_inputs
from ..models.examples import example_of
from ..models.identity import dtype_of, type_of
from ..reading.columns import check_unused
from ..reading.samples import draw
from ..running.batch import Batch, samples_in
from .decoder_inputs import IDS, TARGETS, with_decoder_inputs, writes
from .encoding import model_inputs
from .modalities import TEXTS, modality_of
from .modules import batch_of
from .packing import begun, packed_batches


def calibration_batches(
    data: Any,
    model: nn.Module,
    processor: Any = None,
    *,
    num_samples: int = 512,
    batch_size: int = 8,
    max_length: int | None = None,
    unreadable: str = "skip",
    seed: int = 0,
    text_columns: Sequence[str | int] | None = None,
    block_size: int | None = None,
) -> list[Batch]:
    """Batches of model inputs, without labels.

    Samples are drawn with the seed and sorted by length, so that a batch holds little padding. Of texts for a model
    that predicts the next token, samples are blocks of running text instead (`packing.packed_batches`).

    Args:
        data: a `DataLoader`, whose batches are used as they come, the output of a processor, or samples in whatever
            `samples.draw` takes. A model of texts takes strings, pairs of strings, dicts with text and tokenised
            dicts; one of images takes what `images.pixel_values` does, or an array or tensor of images; a dual model
            takes pairs (image, text) and dicts with both; a plain module what `modules.inputs_of` takes.
        model: the model the batches are for.
        processor: its tokenizer or image processor; not needed for tokenised data and pixel values.
        num_samples: samples to use at most.
        batch_size: samples per batch.
        max_length: tokens per sample at most; `None` takes the tokenizer's and the model's limit.
        unreadable: what to do about samples that cannot be read; see `images.pixel_values` and `texts.read_texts`.
            No others are drawn in their place.
        seed: seed of the draw. A `DataLoader` that shuffles uses its own.
        text_columns: one or two columns (or places in tuples) that hold the text; see `texts.read_texts`.
        block_size: tokens of a block; `None` packs where that is worth it.

    Returns:
        Batches on the CPU; name -> tensor with the batch first.

    Raises:
        ValueError: no data, no text, image or input columns, or several; samples that are all padding or too long,
            token ids outside the vocabulary, images of a size that the model does not take, or no sample that can be
            read.
    """
    modality = modality_of(model)
    if isinstance(data, Mapping):
        check_inputs(data)
    packed = None
    if not isinstance(data, DataLoader) and modality is TEXTS:
        data = begun(data, model, num_samples)
        packed = packed_batches(
            data,
            model,
            processor,
            num_samples=num_samples,
            batch_size=batch_size,
            block_size=block_size,
            max_length=max_length,
            unreadable=unreadable,
            seed=seed,
            text_columns=text_columns,
        )
    elif block_size is not None:
        cause = "it is for texts of models that predict the next token"
        if isinstance(data, DataLoader):
            cause = "a DataLoader's batches are taken as they come"
        raise ValueError(f"block_size={block_size} does not apply: {cause}.")
    if packed is not None:
        batches = packed
    elif isinstance(data, DataLoader):
        check_unused(text_columns, "a DataLoader's batches are taken as they come")
        taken = _taken if example_of(model) is None else batch_of
        batches = _first((taken(batch, model) for batch in data), num_samples)
    else:
        if not modality.holds_text:
            check_unused(text_columns, f"{type_of(model)!r} is a model of {modality.samples}")
        batches = modality.read(
            draw(data, num_samples, seed),
            model,
            processor,
            batch_size=batch_size,
            max_length=max_length,
            unreadable=unreadable,
            text_columns=text_columns,
        )
        batches = _first(batches, num_samples)  # samples of a plain module may be batches themselves
    if modality.decodes:
        batches = with_decoder_inputs(batches, model, max_length)
    check_batches(batches, model)
    # Not in order of length, so that a progress bar's estimate is fair.
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
    return [batches[index] for index in order.tolist()]


def check_batches(batches: Sequence[Batch], model: nn.Module) -> None:
    """Raise if the model cannot take these batches.

    Raises:
        ValueError: see `calibration_batches`.
    """
    if not batches:
        raise ValueError("calibration data is empty: a few dozen samples are needed.")
    modality_of(model).check(batches, model)


def _first(batches: Iterable[Batch], num_samples: int) -> list[Batch]:
    """The first batches, of a number of samples at most."""
    found: list[Batch] = []
    for batch in batches:
        found.append({name: value[:num_samples] for name, value in batch.items()})
        num_samples -= samples_in(found[-1])
        if num_samples <= 0:
            break
    return found


def _taken(batch: Any, model: nn.Module) -> Batch:
    """What a model of transformers takes of a batch that a `DataLoader` made."""
    if not isinstance(batch, Mapping):
        raise ValueError(f"a DataLoader must give dicts of tensors, got {type(batch).__name__}: set its collate_fn.")
    check_inputs(batch)
    inputs = _complete(batch, model)
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"a DataLoader must give dicts of tensors, {name} is {type(value).__name__}: pad them.")
    names = inputs.keys() & set(stack_inputs(model).values())
    numbers = {name for name in names if inputs[name].is_floating_point()}
    return inputs | {name: inputs[name].to(dtype_of(model)) for name in numbers}


def _complete(batch: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    inputs = model_inputs(batch, model)
    if writes(model) and TARGETS in batch:
        inputs[TARGETS] = batch[TARGETS]
    if missing := set(stack_inputs(model).values()) - {*inputs, IDS}:
        raise ValueError(
            f"calibration data lacks the model's inputs: it has {', '.join(map(str, batch)) or 'nothing'}, "
            f"the model needs {' and '.join(sorted(map(repr, missing)))}."
        )
    return inputs
