"""Agreement: how far what an export returns is from what the model returns, on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..keeping.doors import keeping
from ..models.identity import dtype_of
from ..running.batch import Batch, samples_in
from ..running.forward import logits_of, named_outputs, run_model
from ..running.freezing import frozen

_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4}
_ROUGH = 5e-2  # of half precision


@dataclass(frozen=True)
class Agreement:
    """How far two models' outputs are apart.

    Args:
        samples: how many were compared.
        batches: the shapes of their main inputs.
        distance: the norm of the difference over the norm of the output; of several outputs and batches, the largest.
        labels: share of the predictions (of samples, tokens or places) that are the same; `None` without logits.
        compared: how many predictions.
    """

    samples: int
    batches: tuple[tuple[int, ...], ...]
    distance: float
    labels: float | None = None
    compared: int = 0

    def __str__(self) -> str:
        labels = "" if self.labels is None else f", {100 * self.labels:.2f} % of {self.compared} labels the same"
        return f"{self.samples} samples, relative distance {self.distance:.1e}{labels}"


@torch.no_grad()
@keeping("model")
def agreement(model: nn.Module, run: Callable[[Batch], Any], batches: Iterable[Batch]) -> Agreement:
    """Compare what an export returns with what the model returns.

    Args:
        model: the model; unchanged.
        run: runs the export on a batch; returns a mapping of outputs by name, or what the model returns.
        batches: what to compare on.

    Raises:
        ValueError: the export does not run on a batch, or lacks an output, or one has another shape.
    """
    samples, shapes, distance, same, compared = 0, [], 0.0, 0, 0
    with frozen(model):
        for batch in batches:
            wanted = run_model(model, batch)
            shape = tuple(next(iter(batch.values())).shape)
            found = _outputs_of(model, run, batch, shape)
            for name, value in wanted.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    if name not in found or found[name].shape != value.shape:
                        got = tuple(found[name].shape) if name in found else f"only {', '.join(found)}"
                        raise ValueError(
                            f"on inputs of shape {shape} the export returns {got}, and the model {name} of "
                            f"{tuple(value.shape)}."
                        )
                    distance = max(
                        distance, _distance(real_part(name, found[name], batch), real_part(name, value, batch))
                    )
            logits = logits_of(wanted)
            if logits is not None and logits.dim() > 1 and logits.shape[-1] > 1:
                pair = [real_part("logits", each, batch) for each in (logits_of(found), logits)]
                same += int((pair[0].argmax(-1) == pair[1].to(pair[0].device).argmax(-1)).sum())
                compared += pair[1][..., 0].numel()
            samples += samples_in(batch)
            shapes.append(shape)
    return Agreement(samples, tuple(shapes), distance, same / compared if compared else None, compared)


def tolerance(model: nn.Module) -> float:
    """The relative distance that rounding may bring about in a model's precision."""
    return _ROUNDING.get(dtype_of(model), _ROUGH)


def real_part(name: str, output: Tensor, batch: Batch) -> Tensor:
    """The rows of real tokens of an output of shape (batch, tokens, ...): what padding gets depends on the kernel."""
    decoder = "decoder_input_ids" in batch and not name.startswith("encoder_")
    mask = batch.get("decoder_attention_mask" if decoder else "attention_mask")
    if mask is None or output.dim() < 3 or mask.shape != output.shape[:2]:
        return output
    return output[mask.bool().to(output.device)]


def _outputs_of(model: nn.Module, run: Callable[[Batch], Any], batch: Batch, shape: tuple[int, ...]) -> Mapping:
    try:
        return named_outputs(model, run(batch))
    except Exception as error:  # whatever a runtime may raise
        raise ValueError(
            f"the export does not run on inputs of shape {shape} ({type(error).__name__}: {error!s:.300})."
        ) from error


def _distance(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.double().cpu(), wanted.double().cpu()
    known = wanted.isfinite()
    if not torch.equal(found.isfinite(), known):
        return float("inf")
    off, size = float((found - wanted)[known].norm()), float(wanted[known].norm())
    return off / size if size else off
