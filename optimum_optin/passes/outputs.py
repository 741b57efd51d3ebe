"""The part of a model's output that is compared: logits, embeddings, or the pooled output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..inputs.tokens import token_masks, token_rows
from ..running.batch import Batch
from ..running.forward import logits_of, run_model
from ..running.freezing import frozen
from .losses import BINARY, CATEGORICAL, REAL
from .trajectory import Rows


@dataclass(frozen=True)
class Output:
    """The part of a model's output that L_KD compares.

    Args:
        values: shape (rows, classes or channels).
        kind: kind of the values, see `output_distance`.
        of_head: whether a task's head gave them; the pooled output of a model without one need not be what its
            user reads.
    """

    values: Tensor
    kind: str
    of_head: bool = True


def compared_output(model: nn.Module, batch: Batch, rows: Rows) -> Output | None:
    """Run the model; return what L_KD compares: logits or projected embeddings, else the pooled output, else nothing.

    Args:
        model: the model.
        batch: its inputs.
        rows: token positions (`draw_rows`), used where there are logits for every token.

    Of a class that is not transformers' own, what has no name is told by its shape (`forward.run_model`): logits of
    shape (batch, classes) count for each sample, those of shape (batch, tokens, classes) for each token.
    """
    outputs = run_model(model, batch)
    rows = next(iter(rows.values()))  # no model of several stacks has logits for every token
    if outputs.get("start_logits") is not None:
        return Output(torch.cat([outputs["start_logits"], outputs["end_logits"]]), CATEGORICAL)
    logits = logits_of(outputs)
    if logits is None:
        return _embedding(outputs)
    if logits.dim() == 1:  # one number per sample
        logits = logits[:, None]
    labels, problem = (getattr(model.config, name, None) for name in ("num_labels", "problem_type"))
    if logits.dim() == 3:
        logits = logits.flatten(0, 1)
        logits = logits[rows[rows < len(logits)]]  # BEiT's masked images have none for the class token
    elif "input_ids" in batch and logits.shape == batch["input_ids"].shape and logits.shape[1] != labels:
        return Output(logits.flatten()[rows][:, None], BINARY)  # ELECTRA's discriminator: replaced or not
    return Output(logits, _OUTPUT_KINDS.get(problem) or (CATEGORICAL if logits.shape[1] > 1 else REAL))


def _embedding(outputs: Mapping[str, Tensor]) -> Output | None:
    embeddings = [outputs[name] for name in ("image_embeds", "text_embeds") if outputs.get(name) is not None]
    if embeddings:  # of a dual model, both
        return Output(torch.cat([each.to(embeddings[0].device) for each in embeddings], dim=1), REAL)
    pooled = outputs.get("pooler_output")
    return None if pooled is None else Output(pooled, REAL, of_head=False)


@torch.no_grad()
def has_head(model: nn.Module, batch: Batch) -> bool:
    """Whether the model ends in a task's head, found by running it on a batch."""
    rows = {stack: token_rows(mask) for stack, mask in token_masks(model, batch).items()}
    with frozen(model):
        output = compared_output(model, batch, rows)
    return output is not None and output.of_head


_OUTPUT_KINDS = {"multi_label_classification": BINARY, "regression": REAL}
