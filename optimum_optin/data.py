"""Calibration data: from whatever the user has to batches of model inputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .groups import Batch

# Text columns of GLUE and the like, in the order in which a tokenizer wants them.
_TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
    ("text", "text_pair"),
    ("sentence",),
    ("text",),
)
_LABELS = ("label", "labels", "label_ids", "start_positions", "end_positions")


def calibration_batches(
    data: Any,
    model: nn.Module,
    processor: Any = None,
    *,
    num_samples: int = 512,
    batch_size: int = 8,
    max_length: int | None = None,
    seed: int = 0,
) -> list[Batch]:
    """Batches of model inputs, without labels.

    Samples are drawn with the seed and sorted by length, so that a batch holds little padding.

    Args:
        data: a `datasets.Dataset`, a list of strings, of pairs of strings or of tokenised dicts, or a
            `DataLoader` whose batches are used as they are.
        model: the model the batches are for.
        processor: its tokenizer; not needed for tokenised data.
        num_samples: samples to use at most.
        batch_size: samples per batch.
        max_length: tokens per sample at most; `None` takes the tokenizer's and the model's limit.
        seed: seed of the draw.

    Returns:
        Batches on the CPU; name -> tensor with the batch first.

    Raises:
        ValueError: no data, no text or input columns, or samples that are all padding.
    """
    if isinstance(data, DataLoader):
        batches = list(islice(data, -(-num_samples // (data.batch_size or 1))))
        batches = [_model_inputs(dict(batch), model) for batch in batches]
    else:
        samples = _draw(data, num_samples, seed)
        encoded = _encode(samples, model, processor, max_length)
        encoded.sort(key=lambda sample: len(sample["input_ids"]))
        batches = [
            _pad(encoded[start : start + batch_size], model, processor) for start in range(0, len(encoded), batch_size)
        ]
    _check_batches(batches)
    # Out of order of length, so that a progress bar's estimate is fair.
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
    return [batches[index] for index in order.tolist()]


def probe_batch(model: nn.Module, tokens: int) -> Batch:
    """One sample of `tokens` tokens on the model's device, for counting what a forward pass costs."""
    ids = torch.ones(1, tokens, dtype=torch.long, device=model.device)
    if tokens and getattr(model.config, "pad_token_id", None) == 1:  # RoBERTa counts positions by padding
        ids.zero_()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def mean_tokens(batches: Sequence[Batch]) -> int:
    """Mean length of the samples in tokens, padding excluded, rounded, at least 1."""
    samples = sum(len(next(iter(batch.values()))) for batch in batches)
    tokens = sum(int(_token_mask(batch).sum()) for batch in batches)
    return max(1, round(tokens / samples))


def text_columns(columns: Sequence[str], strings: Sequence[str]) -> tuple[str, ...]:
    """The columns to feed a tokenizer: a known pair or single, else the only one or two that hold text.

    Args:
        columns: all column names.
        strings: those that hold text.

    Raises:
        ValueError: no such columns; lists those there are.
    """
    for known in _TEXT_COLUMNS:
        if all(name in strings for name in known):
            return known
    if 1 <= len(strings) <= 2:
        return tuple(strings)
    raise ValueError(
        f"cannot tell the text columns among {', '.join(columns) or 'none'}: rename them to 'text' (and 'text_pair'), "
        "or tokenise the data first so that it has 'input_ids'."
    )


def _draw(data: Any, num_samples: int, seed: int) -> list[Any]:
    if isinstance(data, (str, Mapping)):
        kind = "a dict of splits" if isinstance(data, Mapping) else "a single string"
        raise ValueError(f"calibration data must be a sequence of samples, got {kind}: pass one split, or a list.")
    if not isinstance(data, Iterable):
        raise ValueError(
            f"calibration data must be a Dataset, a list or a DataLoader, got {type(data).__name__}: "
            "pass calibration data, or scores=."
        )
    if not hasattr(data, "__len__"):
        data = list(islice(data, num_samples))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:num_samples]
    if len(order) == 0:
        raise ValueError("calibration data is empty: a few dozen samples are needed.")
    return [data[int(index)] for index in order]


def _encode(samples: list[Any], model: nn.Module, processor: Any, max_length: int | None) -> list[dict]:
    first = samples[0]
    if isinstance(first, Mapping) and "input_ids" in first:
        return [_listed(_model_inputs(sample, model)) for sample in samples]
    if isinstance(first, Mapping):
        strings = [name for name, value in first.items() if isinstance(value, str)]
        names = text_columns(list(first), strings)
        texts = [tuple(sample[name] for name in names) for sample in samples]
    elif isinstance(first, str):
        texts = [(sample,) for sample in samples]
    elif isinstance(first, (tuple, list)) and first and all(isinstance(part, str) for part in first):
        texts = [tuple(sample) for sample in samples]
    else:
        raise ValueError(f"a calibration sample must be a string, a pair of strings or a dict, got {first!r:.80}.")
    if processor is None:
        raise ValueError("raw text needs a tokenizer: pass processor=, or tokenised data with 'input_ids'.")
    limit = max_length or min(processor.model_max_length, _positions(model))
    encoded = processor(*map(list, zip(*texts, strict=True)), truncation=True, max_length=limit)
    names = _accepted(model)
    return [{name: encoded[name][index] for name in encoded if name in names} for index in range(len(texts))]


def _pad(samples: list[dict], model: nn.Module, processor: Any) -> Batch:
    if processor is not None and hasattr(processor, "pad"):
        return dict(processor.pad(samples, return_tensors="pt"))
    longest = max(len(sample["input_ids"]) for sample in samples)
    fill = {"input_ids": getattr(model.config, "pad_token_id", None) or 0}
    for sample in samples:
        sample.setdefault("attention_mask", [1] * len(sample["input_ids"]))
    return {
        name: torch.tensor([sample[name] + [fill.get(name, 0)] * (longest - len(sample[name])) for sample in samples])
        for name in samples[0]
    }


def _model_inputs(sample: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    names = _accepted(model)
    inputs = {name: value for name, value in sample.items() if name in names and name not in _LABELS}
    if "input_ids" not in inputs:
        raise ValueError(
            f"calibration data lacks the model's inputs: it has {', '.join(map(str, sample)) or 'nothing'}, "
            "the model needs 'input_ids'."
        )
    return inputs


def _accepted(model: nn.Module) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _listed(sample: dict[str, Any]) -> dict[str, list]:
    return {name: value.tolist() if isinstance(value, Tensor) else list(value) for name, value in sample.items()}


def _positions(model: nn.Module) -> int:
    positions = getattr(model.config, "max_position_embeddings", None) or 512
    # RoBERTa and its kin start counting after the padding index.
    offset = getattr(model.config, "pad_token_id", 0) or 0
    return positions - offset - 1 if offset else positions


def _check_batches(batches: list[Batch]) -> None:
    if not batches:
        raise ValueError("calibration data is empty: a few dozen samples are needed.")
    for number, batch in enumerate(batches):
        if batch["input_ids"].numel() == 0 or bool((_token_mask(batch).sum(-1) == 0).any()):
            raise ValueError(f"calibration batch {number} holds a sample that is empty or all padding: drop it.")


def _token_mask(batch: Batch) -> Tensor:
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]) if mask is None else mask
