"""Samples to trace an export on, and others to check it on: of other numbers and lengths, and with padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..discovery.find import find_groups
from ..inputs.batching import calibration_batches
from ..inputs.decoder_inputs import IDS, with_decoder_inputs, writes
from ..inputs.encoding import tokenizer_of
from ..inputs.modalities import modality_of
from ..models.examples import example_of
from ..models.identity import is_of_transformers
from ..proving.samples import made_up_sample
from ..running.batch import Batch, samples_in
from ..running.forward import takes

ROWS = 12  # of a batch that is checked
_MADE_UP = 5
_LONGEST = 256  # tokens of a sample
_MASK, _SEGMENTS = "attention_mask", "token_type_ids"
_TRACED = 2  # samples, as one would be taken for a constant


def given_batches(data: Any, model: nn.Module, processor: Any, samples: int) -> list[Batch]:
    """Batches of samples that a person gave.

    Args:
        data: in whatever form calibration data may have; for a plain module, a batch of its inputs by name, or several.
        model: the model.
        processor: its tokenizer or the like; `None` for data that need none.
        samples: how many to take at most.

    Raises:
        ValueError: see `calibration_batches`; or for a plain module, something that is no batch.
    """
    if not is_of_transformers(model) and example_of(model) is None:
        batches = [data] if isinstance(data, Mapping) else list(data)
        if not batches or not all(
            isinstance(each, Mapping) and all(map(torch.is_tensor, each.values())) for each in batches
        ):
            raise ValueError(
                f"a {type(model).__name__} is no model of transformers: data must be a batch of its inputs by name "
                "({'pixels': tensor, ...}), or a list of such batches."
            )
        return [dict(each) for each in batches]
    batches = calibration_batches(
        data, model, processor, num_samples=samples, batch_size=ROWS, max_length=_longest(model, processor)
    )
    return [_with_segments(batch, model, processor) for batch in batches]


def _longest(model: nn.Module, processor: Any) -> int | None:
    """How many tokens samples are cut to; `None` for what is no text."""
    most = modality_of(model).most_tokens(model)
    return most and min(_LONGEST, most, getattr(tokenizer_of(processor), "model_max_length", most))


def made_up_batches(model: nn.Module, processor: Any) -> list[Batch]:
    """One batch of samples drawn at random, of the form that the model takes.

    Raises:
        ValueError: a plain module without an example of its inputs.
    """
    if not is_of_transformers(model) and example_of(model) is None:
        raise ValueError(
            f"it is not known what a {type(model).__name__} takes: give data=, a batch of its inputs by name."
        )
    sample = made_up_sample(model, find_groups(model))
    generator = torch.Generator().manual_seed(0)
    rows = [sample, *({name: _other(value, generator) for name, value in sample.items()} for _ in range(1, _MADE_UP))]
    batch = {name: torch.cat([row[name] for row in rows]) for name in sample}
    batch = _with_segments(batch, model, processor)
    if _SEGMENTS in batch:  # a second text begins halfway
        batch[_SEGMENTS][:, batch[_SEGMENTS].shape[1] // 2 :] = 1
    if writes(model) and IDS not in batch:
        (batch,) = with_decoder_inputs([batch], model)
    return [batch]


def _with_segments(batch: Batch, model: nn.Module, processor: Any) -> dict[str, Tensor]:
    """A batch with the input that tells two texts apart, if the tokenizer makes it and the model takes it: an export
    takes no input that it was not traced with."""
    made = _SEGMENTS in getattr(tokenizer_of(processor), "model_input_names", ())
    if made and _SEGMENTS not in batch and "input_ids" in batch and takes(model, _SEGMENTS):
        return {**batch, _SEGMENTS: torch.zeros_like(batch["input_ids"])}
    return dict(batch)


def _other(value: Tensor, generator: torch.Generator) -> Tensor:
    """Another input like one: numbers drawn anew; tokens in another order."""
    if value.is_floating_point():
        return torch.randn(value.shape, generator=generator).to(value)
    return value[..., torch.randperm(value.shape[-1], generator=generator).to(value.device)]


def traced(batches: list[Batch]) -> Batch:
    """What to trace on: two samples of the first batch, and one of them twice if it has no other."""
    return {name: torch.cat([value, value])[:_TRACED] for name, value in batches[0].items()}


def to_check_on(batches: list[Batch]) -> list[Batch]:
    """The batches, and of the first one: a single sample, and three that are cut to other lengths and padded."""
    found = [*batches, _trimmed({name: value[:1] for name, value in batches[0].items()})]
    if (cut := _cut(batches[0])) is not None:
        found.append(cut)
    return found


def _trimmed(batch: Batch) -> Batch:
    """A batch without the places that are padding in all samples."""
    mask = batch.get(_MASK)
    if mask is None or mask.dim() != 2 or not mask.any():
        return batch
    real = mask.bool().any(0)
    alike = {name for name, value in batch.items() if not value.is_floating_point() and value.shape == mask.shape}
    return {name: value[:, real] if name in alike else value for name, value in batch.items()}


def _cut(batch: Batch) -> Batch | None:
    """Three samples, of two thirds of the tokens, then one and two fewer, with padding behind; `None` where no mask
    tells what is padding."""
    mask = batch.get(_MASK)
    if mask is None or mask.dim() != 2 or mask.shape[1] < 6:
        return None
    length = max(4, mask.shape[1] * 2 // 3)
    rows = min(3, samples_in(batch))
    alike = {name for name, value in batch.items() if not value.is_floating_point() and value.shape == mask.shape}
    if "input_ids" not in alike:
        return None
    found = {name: value[:rows, -length:] if name in alike else value[:rows] for name, value in batch.items()}
    shorter = found[_MASK].clone()
    for row in range(1, rows):  # some may have had padding in front: then there are fewer real ones
        shorter[row, length - row :] = 0
        if not shorter[row].any():
            shorter[row, 0] = 1
    return {**found, _MASK: shorter}
