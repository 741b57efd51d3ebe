"""Batches to measure on: made up, of samples of one length, or of a data set's samples as they come, padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from ..inputs.batching import check_batches
from ..inputs.decoder_inputs import IDS, with_decoder_inputs
from ..inputs.modalities import modality_of
from ..inputs.probes import mean_tokens, samples_of
from ..models.identity import config_of, device_of, main_input_of
from ..reading.samples import draw
from ..running.batch import Batch, samples_in, token_mask

_DRAWN = ("input_ids", IDS)
_NUMBERS = ("pixel_values", "input_values", "input_features")


@dataclass(frozen=True)
class Work:
    """What is timed as one.

    Args:
        kind: the `Cell.work`.
        batches: what is run, one after the other, on the models' device.
        batch_size: samples of a batch, but for the last one.
        tokens: mean length of the samples, without padding.
        padding: share of padding among the tokens of the batches.
    """

    kind: str
    batches: Sequence[Batch]
    batch_size: int
    tokens: float
    padding: float = 0.0

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return sum(map(samples_in, self.batches))


def made_up(model: nn.Module, batch_size: int, tokens: int, seed: int = 0) -> dict[str, Tensor]:
    """A batch of samples of one length: random words, or noise for images and sounds.

    Constant inputs would be as fast, but what a model says of them tells nothing of its other forms.

    Args:
        model: the model.
        batch_size: samples.
        tokens: tokens of each.
        seed: seed of the draw.

    Raises:
        ValueError: see `probe_batch`.
    """
    batch = samples_of(model, tokens, batch_size)
    config = config_of(model)
    if config is None:  # the example of a module is its user's
        return batch
    generator = torch.Generator().manual_seed(seed)
    for name in _NUMBERS:
        if name in batch:
            drawn = torch.randn(batch[name].shape, generator=generator)
            batch[name] = drawn.to(batch[name])
    words = config.get_text_config()
    special = {value for name, value in vars(words).items() if name.endswith("_token_id") and isinstance(value, int)}
    usual = [token for token in range(getattr(words, "vocab_size", 0)) if token not in special]
    for name in _DRAWN:
        if name in batch and usual:
            places = torch.randint(len(usual), batch[name].shape, generator=generator)
            batch[name] = torch.tensor(usual)[places].to(batch[name])
            end = getattr(words, "eos_token_id", None)
            if isinstance(end, int) and name == "input_ids" and 0 <= end < words.vocab_size:
                batch[name][:, -1] = end  # classifiers such as BART's read the place where a text ends
    return batch


def with_padding(batch: Batch) -> dict[str, Tensor] | None:
    """A batch of texts with every other sample, or the only one, cut to two thirds; `None` where nothing is padded."""
    mask = batch.get("attention_mask")
    if mask is None or mask.dim() != 2 or mask.shape != batch.get("input_ids", mask).shape or mask.shape[1] < 3:
        return None
    rows, cut = slice(1, None, 2) if len(mask) > 1 else slice(None), mask.shape[1] // 3
    gone = torch.zeros_like(mask, dtype=torch.bool)
    gone[rows, -cut:] = True
    ends = {"input_ids": batch["input_ids"].clone()}
    ends["input_ids"][rows, -cut - 1] = batch["input_ids"][rows, -1]
    return {**batch, **ends, "attention_mask": mask.masked_fill(gone, 0)}


def collated(
    data: Any,
    model: nn.Module,
    processor: Any,
    *,
    batch_size: int,
    samples: int,
    seed: int = 0,
    text_columns: Sequence[str | int] | None = None,
) -> list[Batch]:
    """Batches of a data set as a `Trainer` or a server makes them: samples in a drawn order, padded to the longest of
    their batch.

    Args:
        data: see `calibration_batches`.
        model: the model.
        processor: its tokenizer or the like.
        batch_size: samples of a batch.
        samples: samples to draw at most.
        seed: seed of the draw.
        text_columns: see `calibration_batches`.

    Raises:
        ValueError: see `calibration_batches`.
    """
    modality = modality_of(model)
    drawn = draw(data, samples, seed)
    rows = list(drawn)
    found: list[Batch] = []
    for start in range(0, len(rows), batch_size):
        part = {row: drawn[row] for row in rows[start : start + batch_size]}
        options = {"batch_size": batch_size, "text_columns": text_columns}
        found += modality.read(part, model, processor, **options)
    if modality.decodes:
        found = with_decoder_inputs(found, model)
    check_batches(found, model)
    return [send_to_device(dict(batch), device_of(model)) for batch in found]


def grid_work(kind: str, model: nn.Module, batch_size: int, tokens: int) -> Work:
    """One cell of a grid."""
    return Work(kind, [made_up(model, batch_size, tokens)], batch_size, tokens)


def data_work(kind: str, model: nn.Module, batches: Sequence[Batch], batch_size: int) -> Work:
    """A whole data set."""
    if main_input_of(model) != "input_ids" or "input_ids" not in batches[0]:
        return Work(kind, batches, batch_size, mean_tokens(batches, model))
    masks = [token_mask(batch) for batch in batches]
    real, places = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
    return Work(kind, batches, batch_size, real / sum(map(samples_in, batches)), 1 - real / places)
