"""Agreement: whether what a model returns in another form is still what it returns in eager mode.

Rows are what a model says something of: samples, or the tokens of samples, padding left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..running.batch import Batch

_TINY = 1e-30
_ROWS = 512  # of a batch that are compared at most: logits of many tokens over a vocabulary are large

Rows = dict[str, Tensor]
"""Name of an output -> its rows, shape (rows, width), float32 on the CPU."""


@dataclass(frozen=True)
class Tolerance:
    """How far outputs may be from those of eager mode.

    Args:
        distance: the most that they may differ, as a share of what eager mode returns: the root of the squares' sums.
        agreement: share of the rows that must be of the same class; one row may always differ, as it may be a tie.
    """

    distance: float
    agreement: float


@dataclass(frozen=True)
class Agreement:
    """What was found.

    Args:
        distance: the largest of all outputs; `None` if there is something that is not finite.
        agreement: the smallest of all outputs that are classes; `None` if none are.
        wrong: what exceeds the tolerance; `None` if nothing does.
    """

    distance: float | None
    agreement: float | None
    wrong: str | None


def agreement_of(
    expected: Callable[[Batch], Mapping[str, Any]],
    found: Callable[[Batch], Mapping[str, Any]],
    batches: Sequence[Batch],
    tolerance: Tolerance,
) -> Agreement:
    """Compare what two forms of one model return.

    Args:
        expected: returns the outputs in eager mode, by name.
        found: returns those of the other form.
        batches: what to compare them on.
        tolerance: how far they may be apart.
    """
    pairs = [(_rows(expected(batch), batch), _rows(found(batch), batch)) for batch in batches]
    names = {name for one, other in pairs for name in one if name in other}
    if not names:
        missing = " and ".join(sorted({name for one, _ in pairs for name in one}))
        return Agreement(None, None, f"it returns nothing that is called {missing}")
    distances, agreements = [], []
    for name in sorted(names):
        ones, others = ([pair[place][name] for pair in pairs] for place in (0, 1))
        if any(one.shape != other.shape for one, other in zip(ones, others, strict=True)):
            return Agreement(None, None, f"{name} has another shape")
        if not all(other.isfinite().all() for other in others):
            return Agreement(None, None, f"{name} is not finite")
        classes = name.endswith("logits") and all(one.dim() == 2 and one.shape[1] > 1 for one in ones)
        distances.append(_distance(ones, others, classes))
        if classes:
            same = [one.argmax(1) == other.argmax(1) for one, other in zip(ones, others, strict=True)]
            agreements.append(torch.cat(same).double())
    distance = max(distances)
    agreement = min((float(each.mean()) for each in agreements), default=None)
    differ = max((int((1 - each).sum()) for each in agreements), default=0)
    few = min((max(1, round((1 - tolerance.agreement) * len(each))) for each in agreements), default=1)
    wrong = None
    if not distance <= tolerance.distance:
        wrong = f"outputs differ by {distance:.2g} of what they are, more than {tolerance.distance:g}"
    elif differ > few:
        wrong = f"the same class for {agreement:.1%} only, less than {tolerance.agreement:.0%}"
    return Agreement(distance, agreement, wrong)


def _distance(expected: Sequence[Tensor], found: Sequence[Tensor], classes: bool) -> float:
    """The root of the squared differences over that of what is expected, over parts of several batches."""
    if classes:  # a softmax does not see what all classes have in common
        expected, found = ([each - each.mean(1, keepdim=True) for each in side] for side in (expected, found))
    rows, widths = sum(map(len, expected)), {each.shape[1:] for each in expected}
    middle: Tensor | float = 0.0
    if not classes and rows > 1 and len(widths) == 1 and max(widths.pop(), default=1) > 1:
        # What all rows have in common tells none from another, and is large in hidden states.
        middle = torch.cat(list(expected)).mean(0)
    differences = sum(float((other - one).double().square().sum()) for one, other in zip(expected, found, strict=True))
    size = sum(float((one - middle).double().square().sum()) for one in expected)
    return (differences / max(size, _TINY)) ** 0.5


def _rows(outputs: Mapping[str, Any], batch: Batch) -> Rows:
    """Rows of all outputs that are numbers, in steps that leave `_ROWS` of them at most."""
    return {
        name: _rows_of(value.detach(), batch)
        for name, value in outputs.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() and name != "loss"
    }


def _rows_of(value: Tensor, batch: Batch) -> Tensor:
    """The rows of an output, without padding."""
    ids = batch.get("decoder_input_ids", batch.get("input_ids"))
    mask = batch.get("decoder_attention_mask", batch.get("attention_mask"))
    if value.dim() == 1:
        value = value[:, None]
    elif ids is not None and value.shape[:2] == ids.shape:
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        real = real.to(value.device)
        # A logit for each token, in two dimensions, is one for where an answer starts.
        value = value[real] if value.dim() > 2 else value.masked_fill(~real, value.min())
    step = -(-len(value) // _ROWS)
    return value[::step].float().cpu()
