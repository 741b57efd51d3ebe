"""Ridge regression from streamed sums: memory does not grow with the number of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .processes import add_up

# Candidates for the regularisation, relative to the mean diagonal of the Gram matrix.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_MIDDLING = 1e-2


class Regression:
    """The weighted sums that a linear regression of `errors` on `inputs` needs.

    Args:
        inputs: input features.
        outputs: output features.
        device: where to keep the sums.

    Attributes:
        count: rows.
        weight: sum of the rows' weights.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device | str = "cpu"):
        zeros = {"dtype": torch.float64, "device": device}
        self.count = torch.zeros((), **zeros)
        self.weight = torch.zeros((), **zeros)
        self.gram = torch.zeros(inputs, inputs, **zeros)
        self.cross = torch.zeros(inputs, outputs, **zeros)
        self.input_sum = torch.zeros(inputs, **zeros)
        self.error_sum = torch.zeros(outputs, **zeros)
        self.error_squares = torch.zeros((), **zeros)

    def add(self, inputs: Tensor, errors: Tensor, weights: Tensor | None = None) -> None:
        """Add rows.

        Args:
            inputs: shape (rows, inputs).
            errors: shape (rows, outputs).
            weights: how much each row counts, shape (rows,); `None` is one each.
        """
        inputs, errors = inputs.float(), errors.float().to(inputs.device)
        weights = inputs.new_ones(len(inputs), 1) if weights is None else weights.to(inputs)[:, None]
        weighted = inputs * weights
        self.count += len(inputs)
        self.weight += weights.sum()
        self.gram += weighted.T @ inputs
        self.cross += weighted.T @ errors
        self.input_sum += weighted.sum(0)
        self.error_sum += (errors * weights).sum(0)
        self.error_squares += (errors.double().square() * weights).sum()

    def add_up(self) -> None:
        """Add the other processes' sums, in place."""
        add_up(*vars(self).values())

    def merged(self, other: Regression) -> Regression:
        """The sums over the rows of both."""
        both = Regression(len(self.input_sum), len(self.error_sum), self.gram.device)
        for name, value in vars(self).items():
            setattr(both, name, value + getattr(other, name))
        return both

    def loss(self, weight: Tensor, bias: Tensor) -> float:
        """Weighted sum over the rows of ||error - weight input - bias||^2, from the sums alone."""
        loss = self.error_squares - 2 * (weight.T * self.cross).sum() - 2 * bias @ self.error_sum
        loss = loss + ((weight @ self.gram) * weight).sum() + 2 * bias @ (weight @ self.input_sum)
        return float(loss + self.weight * bias.square().sum())


def solve_ridge(
    fit: Regression, held_out: Regression, intercept: bool, strength: float | None = None
) -> tuple[Tensor, Tensor]:
    """The change of weight and bias that predicts the errors best, pulled towards no change.

    The strength of the pull is chosen on held-out rows: the weakest that a stronger one does not beat. No change at
    all wins if nothing beats it there. The chosen strength is then solved for on all rows.

    Args:
        fit: rows to fit.
        held_out: rows to choose by; if empty, a middling strength is used.
        intercept: whether a bias may change.
        strength: one of `STRENGTHS`, to skip the choice.

    Returns:
        Change of the weight, shape (outputs, inputs), and of the bias, shape (outputs,); float64.
    """
    if strength is None and held_out.count and fit.count:
        strength = _best_strength(fit, held_out, intercept)
        if strength is None:
            return torch.zeros_like(fit.cross.T), torch.zeros_like(fit.error_sum)
    return _solve(fit.merged(held_out), strength or _MIDDLING, intercept)


def _best_strength(fit: Regression, held_out: Regression, intercept: bool) -> float | None:
    """The strength with the least held-out loss, `None` if no change loses less; weakest first, while it helps."""
    best, least = None, torch.inf
    for strength in STRENGTHS:
        loss = held_out.loss(*_solve(fit, strength, intercept))
        if loss > least:
            break
        best, least = strength, loss
    nothing = torch.zeros_like(fit.cross.T), torch.zeros_like(fit.error_sum)
    return best if least < held_out.loss(*nothing) else None


def _solve(rows: Regression, strength: float, intercept: bool) -> tuple[Tensor, Tensor]:
    gram, cross = rows.gram, rows.cross
    mean, error_mean = rows.input_sum / rows.weight, rows.error_sum / rows.weight
    if intercept:
        gram = gram - rows.weight * mean.outer(mean)
        cross = cross - rows.weight * mean.outer(error_mean)
    if len(gram) == 0:
        weight = cross.T
    else:
        # Constant or repeated inputs leave rounding noise on the diagonal; the floor keeps the solve well-posed.
        floor = 1e-5 * rows.gram.diagonal().mean() + 1e-12
        pull = strength * gram.diagonal().mean().clamp_min(0) + floor
        factor = torch.linalg.cholesky(gram + pull * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        weight = torch.cholesky_solve(cross, factor).T
    bias = error_mean - weight @ mean if intercept else torch.zeros_like(error_mean)
    return weight, bias
