"""Texts for an encoder with a decoder: what it reads and, where samples say so, what it is to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..models.copies import working_copy
from ..reading.columns import check_unused, source_and_target
from ..running.batch import Batch
from ..running.processes import is_main
from .decoder_inputs import IDS, MASK, TARGETS, decoder_start, most_written, padded_targets, writes
from .encoding import encode_read, encode_texts, is_tokenised, pad_in_batches, tokenizer_of
from .texts import flat, read_texts

logger = logging.get_logger(__name__)

_DECODERS = (IDS, MASK, TARGETS)


def text_to_text_batches(
    samples: Mapping[int, Any],
    model: nn.Module,
    processor: Any,
    *,
    batch_size: int,
    max_length: int | None = None,
    unreadable: str = "skip",
    text_columns: Sequence[str | int] | None = None,
) -> list[Batch]:
    """Padded batches, with `labels` or `decoder_input_ids` where samples say what is to be written.

    Args:
        samples: by row: texts, pairs of a text and what is to be written for it, dicts with such columns, or tokenised
            dicts with `input_ids` and perhaps `labels` or `decoder_input_ids`.
        model: the model.
        processor: its tokenizer; not needed for tokenised data.
        batch_size: as for `calibration_batches`, as are the others.
        max_length: of what is read, and of what is written.
        unreadable: see `texts.read_texts`.
        text_columns: the column that is read, and perhaps the one that is to be written.

    Raises:
        ValueError: see `read_texts`; or some samples say what is to be written and others do not.
    """
    targets: dict[int, dict] = {}
    if not writes(model):
        options = {"max_length": max_length, "unreadable": unreadable, "text_columns": text_columns}
        encoded = encode_texts(_without_targets(samples), model, processor, **options)
    elif all(map(_is_tokenised, samples.values())):
        check_unused(text_columns, "the samples are tokenised already")
        _check_sources(samples)
        sources = {row: _part(sample, written=False) for row, sample in samples.items()}
        encoded = encode_read(sources, model, processor, max_length, unreadable)
        targets = _tokenised_targets({row: samples[row] for row in encoded}, model, max_length)
    else:
        flattened = {row: flat(sample) for row, sample in samples.items()}
        texts = read_texts(flattened, text_columns, unreadable, source_and_target)
        encoded = encode_read({row: text[:1] for row, text in texts.items()}, model, processor, max_length, unreadable)
        if all(len(text) > 1 for text in texts.values()):
            labels = target_labels([texts[row][1] for row in encoded], model, processor, max_length)
            targets = {row: {TARGETS: ids} for row, ids in zip(encoded, labels, strict=True)}
    rows = list(encoded)
    padded = pad_in_batches(list(encoded.values()), model, processor, batch_size)
    if not targets:
        return [batch for _, batch in padded]
    return [batch | padded_targets([targets[rows[place]] for place in part], model) for part, batch in padded]


def target_labels(texts: Sequence[str], model: nn.Module, processor: Any, max_length: int | None) -> list[list[int]]:
    """The token ids that a model is to write for texts, with what ends a text.

    Args:
        texts: what is to be written.
        model: an encoder with a decoder that writes text.
        processor: its tokenizer, or a processor that holds one.
        max_length: tokens at most; `None` takes the tokenizer's and the decoder's limit.
    """
    tokenizer = tokenizer_of(processor)
    decoder_start(model)
    limit = max_length or min(tokenizer.model_max_length, most_written(model))
    return working_copy(tokenizer)(text_target=list(texts), truncation=True, max_length=limit)["input_ids"]


def _is_tokenised(sample: Any) -> bool:
    return isinstance(sample, Mapping) and not {"input_ids", IDS}.isdisjoint(sample)


def _check_sources(samples: Mapping[int, Any]) -> None:
    lacking = next((row for row, sample in samples.items() if "input_ids" not in sample), None)
    if lacking is not None:
        raise ValueError(
            f"the sample in row {lacking} has {', '.join(map(str, samples[lacking]))}, and no input_ids for the "
            "encoder to read: an encoder with a decoder needs both."
        )


def _part(sample: Mapping[str, Any], *, written: bool) -> dict[str, Any]:
    """The decoder's part of a tokenised sample, or what is left without it."""
    return {name: value for name, value in sample.items() if (name in _DECODERS) == written}


def _without_targets(samples: Mapping[int, Any]) -> dict[int, Any]:
    tokenised = all(map(is_tokenised, samples.values()))
    return {row: _part(sample, written=False) if tokenised else sample for row, sample in samples.items()}


def _tokenised_targets(samples: Mapping[int, Mapping], model: nn.Module, max_length: int | None) -> dict[int, dict]:
    """The decoder's part of tokenised samples as plain lists, cut where they are too long; empty if none has any."""
    parts = {row: _part(sample, written=True) for row, sample in samples.items()}
    parts = {row: {name: value for name, value in part.items() if value is not None} for row, part in parts.items()}
    names = {tuple(name for name in (IDS, TARGETS) if name in part)[:1] for part in parts.values()}
    if names == {()}:
        return {}
    if len(names) > 1:
        row = next(row for row, part in parts.items() if not {IDS, TARGETS} & set(part))
        raise ValueError(
            f"the sample in row {row} has neither {TARGETS} nor {IDS}, which others have: give them to all or to none."
        )
    ((name,),) = names
    limit = max_length or most_written(model)
    found, longer = {}, 0
    for row, part in parts.items():
        kept = (name, MASK) if name == IDS and MASK in part else (name,)
        lists = {each: torch.as_tensor(part[each]).flatten().tolist() for each in kept}
        if not lists[name]:
            raise ValueError(f"{name} of the sample in row {row} are empty: drop it.")
        longer += len(lists[name]) > limit
        found[row] = {each: values[:limit] for each, values in lists.items()}
    if longer and max_length is None and is_main():
        logger.warning(f"{name} of {longer} of {len(found)} samples are longer than the decoder takes: cut to {limit}.")
    if name == IDS and len({MASK in part for part in found.values()}) > 1:
        found = {row: {IDS: part[IDS], MASK: part.get(MASK, [1] * len(part[IDS]))} for row, part in found.items()}
    return found
