"""Few logits: a head over a vocabulary computes those of the compared tokens alone, as those of all fill memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..running.batch import Batch

_MOST = 2**25  # logits of a pass that are compared: 128 MB in float32


def compared_tokens(rows: Tensor, vocabulary: int) -> Tensor:
    """The rows whose logits are compared: all, or as many as memory has room for, spread evenly.

    Args:
        rows: token positions, shape (K,); the same for the dense and the pruned model, and so is what is returned.
        vocabulary: how many logits each has.
    """
    most = max(1, _MOST // vocabulary)
    return rows if len(rows) <= most else rows[torch.arange(most) * len(rows) // most]


@contextmanager
def logits_at(model: nn.Module, batch: Batch, rows: Tensor, *, bounded: bool = True) -> Iterator[list[Tensor]]:
    """Run the model's head over the vocabulary on some tokens alone; undone on exit.

    Args:
        model: a model of transformers; of others, and of those without such a head, all logits are computed.
        batch: its inputs.
        rows: token positions, shape (K,).
        bounded: whether it may be fewer of them (`compared_tokens`).

    Yields:
        A list that holds the positions, after a pass whose logits are of shape (1, positions, vocabulary); it stays
        empty if the head read something else than a row for each token.
    """
    head = _head(model)
    taken: list[Tensor] = []
    # The head reads what a decoder returns, if there is one.
    ids = batch.get("decoder_input_ids", batch.get("input_ids"))
    if head is None or ids is None:
        yield taken
        return
    chosen = compared_tokens(rows, head.out_features) if bounded else rows

    def take(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = inputs[0] if inputs else None
        if not isinstance(hidden, Tensor) or hidden.dim() != 3 or hidden.shape[:2] != ids.shape:
            return None
        taken[:] = [chosen]
        return (hidden.flatten(0, 1)[chosen.to(hidden.device)][None], *inputs[1:])  # (1, positions, d)

    handle = head.register_forward_pre_hook(take)
    try:
        yield taken
    finally:
        handle.remove()


def _head(model: nn.Module) -> nn.Linear | None:
    """The linear that makes logits over the vocabulary, if there is one."""
    find = getattr(model, "get_output_embeddings", None)
    try:
        found = find() if find is not None else None
    except (AttributeError, NotImplementedError):  # classes whose head has another name
        return None
    return found if isinstance(found, nn.Linear) else None
