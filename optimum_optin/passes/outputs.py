"""The part of a model's output that is compared: logits, maps, what queries say, embeddings, or the pooled output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..comparing.few_logits import logits_at
from ..comparing.losses import BINARY, CATEGORICAL, REAL, OutputKind
from ..comparing.pixels import at_pixels, drawn_pixels
from ..comparing.queries import BOXES, MASKS, Place, QueryKind
from ..inputs.tokens import token_masks, token_rows
from ..models.identity import config_of
from ..running.batch import Batch
from ..running.forward import logits_of, run_model
from ..running.freezing import frozen
from .half_precision import float_products
from .trajectory import Rows


@dataclass(frozen=True)
class Output:
    """The part of a model's output that L_KD compares.

    Args:
        values: shape (rows, classes or channels); rows are samples, tokens, pixels or queries.
        kind: the kind of the values, see `output_distance`.
        of_head: whether they come from a task's head; a model without one has a pooled output at most, which need not
            be what its user reads.
    """

    values: Tensor
    kind: OutputKind
    of_head: bool = True


def compared_output(model: nn.Module, batch: Batch, rows: Rows) -> Output | None:
    """Run the model; return what L_KD compares: logits or projected embeddings, else the pooled output, else nothing.

    Args:
        model: the model.
        batch: its inputs.
        rows: token positions (`draw_rows`), used where there are logits for every token, of which a head over a
            vocabulary then computes no others (`logits_at`); where there are some for every pixel, they decide which
            pixels are compared (`drawn_pixels`).

    Outputs without a name, of a class that is not of transformers, are told by their shape (`forward.run_model`):
    logits of shape (batch, classes) are one row per sample, those of shape (batch, tokens, classes) one per token, and
    those of shape (batch, classes, height, width) one per pixel.
    """
    stacks = list(rows.values())  # of models with several, only a decoder's tokens have logits, and it comes last
    rows = stacks[-1] if "decoder_input_ids" in batch else stacks[0]
    with logits_at(model, batch, rows) as taken:
        outputs = run_model(model, batch)
    if taken:  # the outputs have these tokens and no others
        rows = torch.arange(len(taken[0]), device=taken[0].device)
    found = (read(outputs, model, batch, rows) for read in _READERS)
    return next((output for output in found if output is not None), None)


@torch.no_grad()
def has_head(model: nn.Module, batch: Batch) -> bool:
    """Whether the model ends in a task's head, found by running it on a batch."""
    rows = {stack: token_rows(mask) for stack, mask in token_masks(model, batch).items()}
    with frozen(model), float_products(model):
        output = compared_output(model, batch, rows)
    return output is not None and output.of_head


def _answers(outputs: Mapping[str, Tensor], model: nn.Module, batch: Batch, rows: Tensor) -> Output | None:
    """Where an answer starts and ends: two logits of shape (batch, tokens), each a softmax over tokens."""
    if outputs.get("start_logits") is None:
        return None
    return Output(torch.cat([outputs["start_logits"], outputs["end_logits"]]), CATEGORICAL)


def _replaced_tokens(outputs: Mapping[str, Tensor], model: nn.Module, batch: Batch, rows: Tensor) -> Output | None:
    """Whether each token was replaced (ELECTRA's discriminator): logits of shape (batch, tokens)."""
    logits = logits_of(outputs)
    if logits is None or "input_ids" not in batch or logits.shape != batch["input_ids"].shape:
        return None
    labels = getattr(config_of(model), "num_labels", None)
    return None if logits.shape[1] == labels else Output(logits.flatten()[rows][:, None], BINARY)


def _masked_queries(outputs: Mapping[str, Tensor], model: nn.Module, batch: Batch, rows: Tensor) -> Output | None:
    """Class and mask of every query (MaskFormer and its kin, DETR's segmentation)."""
    names = ("class_queries_logits", "masks_queries_logits"), ("logits", "pred_masks")
    found = next(((outputs[one], outputs[other]) for one, other in names if _have(outputs, one, other)), None)
    if found is None or found[0].dim() != 3 or found[1].dim() != 4:
        return None
    logits, masks = found
    pixels = drawn_pixels(batch, rows, masks.shape[-2:])
    return _of_queries(logits, at_pixels(masks, pixels), MASKS, model)


def _boxed_queries(outputs: Mapping[str, Tensor], model: nn.Module, batch: Batch, rows: Tensor) -> Output | None:
    """Class and box of every query (detectors)."""
    if not _have(outputs, "logits", "pred_boxes"):
        return None
    return _of_queries(outputs["logits"], outputs["pred_boxes"], BOXES, model)


def _have(outputs: Mapping[str, Tensor], *names: str) -> bool:
    return all(isinstance(outputs.get(name), Tensor) for name in names)


def _of_queries(logits: Tensor, places: Tensor, place: Place, model: nn.Module) -> Output:
    """Queries as rows; shapes (batch, queries, classes) and (batch, queries, numbers)."""
    queries, classes = logits.shape[1:]
    exclusive = classes - 1 == getattr(getattr(model, "config", None), "num_labels", None)  # the last is "no object"
    values = torch.cat([logits, places.to(logits)], dim=-1).flatten(0, 1)
    return Output(values, QueryKind(queries, classes, exclusive, place))


def _numbers_of_pixels(outputs: Mapping[str, Tensor], model: nn.Module, batch: Batch, rows: Tensor) -> Output | None:
    """Depth, or colours, of every pixel: shape (batch, height, width) or (batch, channels, height, width)."""
    maps = next((outputs[name] for name in ("predicted_depth", "reconstruction") if _have(outputs, name)), None)
    if maps is None or maps.dim() not in (3, 4):
        return None
    return Output(_rows_of_pixels(maps if maps.dim() == 4 else maps[:, None], batch, rows), REAL)


def _classes_of_pixels(outputs: Mapping[str, Tensor], model: nn.Module, batch: Batch, rows: Tensor) -> Output | None:
    """Classes of every pixel: logits of shape (batch, classes, height, width), of a single class those of a sigmoid."""
    logits = logits_of(outputs)
    if logits is None or logits.dim() != 4:
        return None
    told = _KINDS.get(getattr(config_of(model), "problem_type", None))
    kind = told or (CATEGORICAL if logits.shape[1] > 1 else BINARY)
    return Output(_rows_of_pixels(logits, batch, rows), kind)


def _rows_of_pixels(maps: Tensor, batch: Batch, rows: Tensor) -> Tensor:
    """Compared pixels as rows, shape (batch * pixels, channels)."""
    return at_pixels(maps, drawn_pixels(batch, rows, maps.shape[-2:])).transpose(1, 2).flatten(0, 1)


def _logits(outputs: Mapping[str, Tensor], model: nn.Module, batch: Batch, rows: Tensor) -> Output | None:
    """Logits of classes, or numbers, for each sample or each token."""
    logits = logits_of(outputs)
    if logits is None:
        return None
    if logits.dim() == 1:  # one number per sample
        logits = logits[:, None]
    if logits.dim() == 3:
        logits = logits.flatten(0, 1)
        logits = logits[rows[rows < len(logits)]]  # BEiT's masked images have none for the class token
    told = _KINDS.get(getattr(config_of(model), "problem_type", None))
    return Output(logits, told or (CATEGORICAL if logits.shape[1] > 1 else REAL))


def _embeddings(outputs: Mapping[str, Tensor], model: nn.Module, batch: Batch, rows: Tensor) -> Output | None:
    """Embeddings that are projected to be compared; those of a dual model side by side."""
    embeddings = [outputs[name] for name in ("image_embeds", "text_embeds") if outputs.get(name) is not None]
    if not embeddings:
        return None
    return Output(torch.cat([each.to(embeddings[0].device) for each in embeddings], dim=1), REAL)


def _pooled(outputs: Mapping[str, Tensor], model: nn.Module, batch: Batch, rows: Tensor) -> Output | None:
    """The pooled output of a model without a head."""
    pooled = outputs.get("pooler_output")
    return None if pooled is None else Output(pooled, REAL, of_head=False)


# The first that finds something decides; a task whose output has another form adds a reader.
_READERS = (
    _answers,
    _masked_queries,
    _boxed_queries,
    _numbers_of_pixels,
    _replaced_tokens,
    _classes_of_pixels,
    _logits,
    _embeddings,
    _pooled,
)
_KINDS = {"multi_label_classification": BINARY, "regression": REAL}  # by the config's problem type
