"""Ridge regression from streamed sums: memory does not grow with the number of rows."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from ..running.processes import add_up, everyones, my_part, process_count, process_index
from ..sums.moments import Moments, precision_of
from ..sums.symmetric import add_product

# Candidates for the regularisation, relative to the mean diagonal of the Gram matrix.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_MIDDLING = 1e-2
_COMBINATIONS = 128  # of outputs, which strengths are tried on
_ROWS = 256  # of a matrix that are worked on at once: its sums are large, and so are copies


class Regression:
    """The weighted sums that a linear regression of `errors` on `inputs` needs.

    Args:
        inputs: how many input features there are.
        outputs: how many output features.
        device: where to keep the sums.

    Attributes:
        inputs: moments of the inputs.
        cross: weighted sum of the outer products of shifted inputs and errors, shape (inputs, outputs), in the type of
            the inputs' sums.
        error_sum: weighted sum of the errors, shape (outputs,).
        error_squares: weighted sum of their squares.
        knows_inputs: whether the moments are those of an earlier regression, see `of_other_errors`.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device | str = "cpu"):
        zeros = {"dtype": torch.float64, "device": device}
        self.inputs = Moments(inputs, device, precision_of(inputs))
        self.knows_inputs = False
        self.cross = torch.zeros(inputs, outputs, dtype=precision_of(inputs), device=device)
        self.error_sum = torch.zeros(outputs, **zeros)
        self.error_squares = torch.zeros((), **zeros)

    @property
    def weight(self) -> Tensor:
        """The sum of the weights of the rows that were added; 0 if all of them are padding."""
        return self.inputs.weight

    def add(self, inputs: Tensor, errors: Tensor, weights: Tensor | None = None) -> None:
        """Add rows.

        Args:
            inputs: shape (rows, inputs).
            errors: shape (rows, outputs).
            weights: how much each row counts, shape (rows,); `None` gives each the weight 1.
        """
        inputs = inputs.to(self.cross.device)
        errors = errors.to(self.cross.device, torch.float32)
        weights = errors.new_ones(len(inputs)) if weights is None else weights.to(errors)
        weighted = self.inputs.shifted(inputs, weights)[1] if self.knows_inputs else self.inputs.add(inputs, weights)
        for part, columns in zip(self.cross.split(_ROWS), weighted.T.split(_ROWS), strict=True):
            add_product(part, columns, errors)
        self.error_sum += weights @ errors
        self.error_squares += weights.double() @ errors.square().sum(1).double()

    def of_other_errors(self) -> Regression:
        """Sums of the same rows and weights with other errors, which are still to be added: inputs need no new sums."""
        other = copy.copy(self)
        other.knows_inputs = True
        for name in ("cross", "error_sum", "error_squares"):
            setattr(other, name, torch.zeros_like(getattr(self, name)))
        return other

    def of_combinations(self, signs: Tensor) -> Regression:
        """The regression of combinations of the errors, as a new object with the same inputs; see `_signs`.

        Args:
            signs: how much of each output is in each combination, shape (outputs, combinations), float64.
        """
        other = copy.copy(self)
        other.cross = torch.cat([part.double() @ signs for part in self.cross.split(_ROWS)])
        other.error_sum = self.error_sum @ signs
        return other

    def merged(self, other: Regression) -> Regression:
        """The sums over the rows of both, which have begun together, as a new object."""
        both = copy.copy(self)
        both.inputs = self.inputs.merged(other.inputs)
        for name in ("cross", "error_sum", "error_squares"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def sums(self) -> list[Tensor]:
        """What rows are added to, small tensors first."""
        inputs = self.inputs
        of_inputs = [] if self.knows_inputs else [inputs.count, inputs.weight, inputs.total, inputs.products.packed]
        return sorted([self.error_sum, self.error_squares, self.cross, *of_inputs], key=Tensor.numel)

    def normal_equations(self, centred: bool) -> tuple[Tensor, Tensor]:
        """Weighted sums of the outer products of inputs with inputs, and of inputs with errors; float64.

        Args:
            centred: whether to subtract their mean from the inputs.

        Returns:
            Shapes (inputs, inputs) and (inputs, outputs).
        """
        return self.inputs.scatter(centred), self.products(centred)

    def products(self, centred: bool, outputs: slice = slice(None), dtype: torch.dtype = torch.float64) -> Tensor:
        """Weighted sum of the outer products of inputs with errors, shape (inputs, outputs), for LAPACK.

        Args:
            centred: whether to subtract their mean from the inputs.
            outputs: which of the errors.
            dtype: its type; it is computed in float64.
        """
        origin = self.inputs.mean() if centred else torch.zeros_like(self.inputs.shift)
        steps, cross, errors = self.inputs.shift - origin, self.cross[:, outputs], self.error_sum[outputs]
        products = torch.empty(cross.T.shape, dtype=dtype, device=cross.device).mT
        for part, rows, step in zip(*(each.split(_ROWS) for each in (products, cross, steps)), strict=True):
            part.copy_(rows + step.outer(errors))
        return products

    def loss(self, weight: Tensor, bias: Tensor) -> float:
        """Weighted sum over the rows of ||error - weight input - bias||^2, from the sums alone."""
        weight = weight.double()
        bias = bias + weight @ self.inputs.shift  # the sums are of shifted inputs
        parts = zip(weight.T.split(_ROWS), self.cross.split(_ROWS), strict=True)
        loss = self.error_squares - 2 * sum((one * other).sum() for one, other in parts) - 2 * bias @ self.error_sum
        loss = loss + self.inputs.squares_of(weight) + 2 * bias @ (weight @ self.inputs.total.double())
        return float(loss + self.inputs.weight * bias.square().sum())


def begin_together(regressions: Sequence[Regression], inputs: Tensor | None) -> None:
    """Take sums about one shift, so that they can be merged and added up: the mean of all processes' first inputs.

    Args:
        regressions: sums of the same features, without rows yet.
        inputs: the first inputs of this process, shape (rows, inputs); `None` if it has none.
    """
    first = torch.zeros(len(regressions[0].inputs.shift) + 1, dtype=torch.float64, device=regressions[0].cross.device)
    if inputs is not None:
        first[:-1] = inputs.sum(0, dtype=torch.float64)
        first[-1] = len(inputs)
    add_up(first)
    shift = first[:-1] / first[-1].clamp_min(1)
    for each in regressions:
        each.inputs.begin(shift.float().double())  # exact where it is subtracted from rows in float32


def add_up_regressions(regressions: Sequence[Regression]) -> None:
    """Add the other processes' sums to those of several regressions that have begun together, in place."""
    add_up(*(tensor for each in regressions for tensor in each.sums()))


def solve_ridge(
    fit: Regression, held_out: Regression, intercept: bool, strength: float | None = None
) -> tuple[Tensor, Tensor]:
    """The change of weight and bias that predicts the errors best, pulled towards no change.

    The strength of the pull is chosen on held-out rows: strengths are tried from the weakest on, as long as their loss
    does not grow. If no change at all loses less there, nothing is changed. The chosen strength is solved for on all
    rows. Several processes, which hold the same sums, share strengths and outputs out; all get the same answer to the
    last bit.

    Args:
        fit: rows to fit.
        held_out: rows to choose by, of sums that have begun together with `fit`; if they have no weight, a middling
            strength is used. If `fit` has none either, nothing changes.
        intercept: whether a bias may change.
        strength: the strength, relative to the mean diagonal of the Gram matrix; `None` chooses one of `STRENGTHS`.

    Returns:
        Change of the weight, shape (outputs, inputs), in the type of the inputs' sums, and of the bias, shape
        (outputs,), float64.
    """
    if not held_out.weight + fit.weight:
        return torch.zeros_like(fit.cross.T), torch.zeros_like(fit.error_sum)
    if strength is None and held_out.weight and fit.weight:
        strength = _best_strength(fit, held_out, intercept)
        if strength is None:
            return torch.zeros_like(fit.cross.T), torch.zeros_like(fit.error_sum)
    rows = fit.merged(held_out) if held_out.weight else fit
    if process_count() == 1:
        return _solve(rows, strength or _MIDDLING, intercept)
    bias = torch.zeros_like(rows.error_sum)
    weight = torch.zeros_like(rows.cross.T, memory_format=torch.contiguous_format)
    mine = my_part(len(bias))
    weight[mine], bias[mine] = _solve(rows, strength or _MIDDLING, intercept, mine)
    add_up(weight, bias)  # what others solve is 0 here, so that nothing is rounded
    return weight, bias


def _best_strength(fit: Regression, held_out: Regression, intercept: bool) -> float | None:
    """The strength with the least held-out loss, from the weakest on while it helps; `None` if none beats no change.

    Each process tries one of as many strengths as there are processes. Of many outputs, losses are estimated.
    """
    if len(fit.error_sum) > _COMBINATIONS:
        signs = _signs(fit.error_sum)
        fit, held_out = fit.of_combinations(signs), held_out.of_combinations(signs)
    best, least = None, torch.inf
    for first in range(0, len(STRENGTHS), process_count()):
        tried = STRENGTHS[first : first + process_count()]
        mine = tried[min(process_index(), len(tried) - 1)]  # none is idle: what cannot be solved must stop all of them
        losses = everyones(held_out.loss(*_solve(fit, mine, intercept)))
        for strength, loss in zip(tried, losses, strict=False):
            if loss > least:
                return _helpful(best, least, held_out)
            best, least = strength, loss
    return _helpful(best, least, held_out)


def _signs(outputs: Tensor) -> Tensor:
    """Random signs S over the root of their number, shape (outputs, combinations): E[S S^T] = I.

    So the sum of squares of combinations S^T e is that of the errors e, in expectation, and exactly that for errors of
    a single output, however large. All processes draw the same.
    """
    signs = torch.randint(2, (len(outputs), _COMBINATIONS), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return signs.to(outputs) / _COMBINATIONS**0.5


def _helpful(strength: float | None, loss: float, held_out: Regression) -> float | None:
    """The strength, if its loss is less than that of no change."""
    return strength if loss < float(held_out.error_squares) else None


def _solve(rows: Regression, strength: float, intercept: bool, outputs: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """The change of weight and bias at a strength, for some of the outputs."""
    factor = rows.inputs.factor(intercept, rows.inputs.damping(intercept, strength))
    weight = rows.products(intercept, outputs, factor.dtype)
    # In place, where `cholesky_solve` copies both.
    torch.linalg.solve_triangular(factor, weight, upper=False, out=weight)
    torch.linalg.solve_triangular(factor.mT, weight, upper=True, out=weight)
    del factor
    weight = weight.T.to(rows.cross.dtype)
    bias = (rows.error_sum / rows.inputs.weight)[outputs]
    if not intercept:
        return weight, torch.zeros_like(bias)
    mean = rows.inputs.mean()
    return weight, bias - torch.cat([part.double() @ mean for part in weight.split(_ROWS)])
