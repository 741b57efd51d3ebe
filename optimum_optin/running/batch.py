"""A batch of model inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Batch = Mapping[str, Tensor]
"""A model's inputs by name, each with the batch as first dimension."""


def samples_in(batch: Batch) -> int:
    """How many samples a batch has."""
    return len(next(iter(batch.values())))


def same_batches(some: Sequence[Batch], others: Sequence[Batch]) -> bool:
    """Whether two lists of batches hold the same inputs on the same device."""
    return some is others or (
        len(some) == len(others)
        and all(one.keys() == other.keys() for one, other in zip(some, others, strict=True))
        and all(
            value.device == other[name].device and torch.equal(value, other[name])
            for one, other in zip(some, others, strict=True)
            for name, value in one.items()
        )
    )


def digest_of(batches: Sequence[Batch]) -> str:
    """SHA-256 over the names, types, shapes and values of batches' inputs, whatever device they are on."""
    digest = hashlib.sha256()
    for batch in batches:
        for name, value in batch.items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def token_mask(batch: Batch, image_tokens: int | None = None) -> Tensor:
    """Which tokens of a batch are real, padding excluded: shape (batch, tokens), boolean.

    Args:
        batch: model inputs.
        image_tokens: how many tokens the model makes of an image (`media.vision.image_tokens`), all of them real;
            `None` for text, whose inputs are tokens already.
    """
    if image_tokens is not None:
        device = next(iter(batch.values())).device
        return torch.ones(samples_in(batch), image_tokens, dtype=torch.bool, device=device)
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
