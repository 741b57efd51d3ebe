"""Distances between the dense and the masked network (OPTIN, Sec. 3.2).

Everything here takes tensors. `probe_*` functions draw a random linear functional r of a loss's
features, so that E[(r . J)^2] = ||J||^2: the Gauss-Newton form of the loss (see docs/source/concepts/method.mdx).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..running.memory import at_least_single

_PART = 2**21  # logits whose divergences are computed at once: 8 MB for each number of one
_ROUNDING = 1e-12  # share of the mean square that float32 may leave as variance of constant outputs


def token_features(hidden: Tensor, rows: Tensor) -> Tensor:
    """The K compared tokens, L2-normalised over features.

    Args:
        hidden: hidden states, shape (batch, tokens, channels).
        rows: indices into batch * tokens, shape (K,): the same for teacher and student.

    Returns:
        float32 features, shape (K, channels).
    """
    chosen = hidden.flatten(0, -2)[rows].float()
    return torch.nn.functional.normalize(chosen, dim=-1)


def manifold_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """L_MD, manifold distillation: squared distance of the Gram matrices.

    Args:
        student: normalised features, shape (K, channels).
        teacher: the same rows of the dense model, shape (K, channels).

    Returns:
        sum over the K x K entries of (M_t - M_s)^2, a scalar.
    """
    return (student @ student.T - teacher @ teacher.T).square().sum()


def probe_manifold(features: Tensor, generator: torch.Generator) -> Tensor:
    """A random functional of the Gram matrix, r . M with r ~ N(0, 1) per entry; a scalar."""
    weights = torch.randn(len(features), len(features), generator=generator).to(features)
    return ((weights @ features) * features).sum()


class OutputKind(Protocol):
    """What must be known of a kind of output; for a new kind, one such class is all there is to add.

    Outputs are of any floating-point type, and computed with in float32 at least. Their first dimension is rows
    (samples or tokens), which are compared one by one.
    """

    def distance(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """L_KD, averaged over rows: a scalar, at least 0; see `output_distance`."""

    def shaped(self, noise: Tensor, output: Tensor, temperature: float) -> Tensor:
        """Noise ~ N(0, 1), multiplied by a root of the curvature that `distance` has at these outputs."""

    def sums(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        """The sums over rows that `agreement` needs, float64; they are added up over batches."""

    def agreement(self, rows: float, sums: Sequence[Tensor]) -> float | None:
        """How far student and teacher agree over so many rows, at most 1; `None` if that cannot be said."""


class _Categorical:
    """Logits of a softmax, shape (rows, classes); outputs agree if they have the same class."""

    def distance(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return class_divergences(student, teacher, temperature).mean() * temperature**2

    def shaped(self, noise: Tensor, output: Tensor, temperature: float) -> Tensor:
        share = (output / temperature).softmax(-1)
        noise = share.sqrt() * noise
        return (noise - share * noise.sum(-1, keepdim=True)) * 0.5**0.5

    def sums(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        return ((student.argmax(-1) == teacher.argmax(-1)).sum().double(),)

    def agreement(self, rows: float, sums: Sequence[Tensor]) -> float | None:
        return float(sums[0]) / rows


class _Binary:
    """Logits of independent sigmoids, shape (rows, classes); each output counts by the share of classes that agree."""

    def distance(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return switch_divergences(student, teacher, temperature).mean() * temperature**2

    def shaped(self, noise: Tensor, output: Tensor, temperature: float) -> Tensor:
        share = (output / temperature).sigmoid()
        return noise * (share * (1 - share) / 2).sqrt()

    def sums(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        return (((student > 0) == (teacher > 0)).float().mean(-1).sum().double(),)

    def agreement(self, rows: float, sums: Sequence[Tensor]) -> float | None:
        return float(sums[0]) / rows


class _Real:
    """Numbers, shape (rows, channels); they agree by the share of the teacher's variance that the student explains."""

    def distance(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return (at_least_single(student) - at_least_single(teacher)).square().sum(-1).mean()

    def shaped(self, noise: Tensor, output: Tensor, temperature: float) -> Tensor:
        return noise

    def sums(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        squares = teacher.double().square().sum()
        errors = at_least_single(student) - at_least_single(teacher)
        return errors.square().sum().double(), squares, teacher.double().sum(0)

    def agreement(self, rows: float, sums: Sequence[Tensor]) -> float | None:
        error, squares = float(sums[0]), float(sums[1])
        variance = squares - float(sums[2].square().sum()) / rows
        return None if variance <= _ROUNDING * squares else max(0.0, 1 - error / variance)


CATEGORICAL, BINARY, REAL = _Categorical(), _Binary(), _Real()


def output_distance(student: Tensor, teacher: Tensor, temperature: float, kind: OutputKind) -> Tensor:
    """L_KD, distance of the outputs, averaged over rows.

    Args:
        student: outputs, shape (rows, classes).
        teacher: outputs of the dense model, same shape.
        temperature: T; a divergence is taken at logits / T and multiplied by T^2.
        kind: `CATEGORICAL` for the KL divergence of the softmax, `BINARY` for that of each class's
            sigmoid, `REAL` for the squared error (regression and embeddings, where KL means nothing).

    Returns:
        A scalar, at least 0.
    """
    return kind.distance(student, teacher, temperature)


def probe_output(output: Tensor, temperature: float, kind: OutputKind, generator: torch.Generator) -> Tensor:
    """A random functional of the outputs; the expectation of its squared gradient is the curvature of L_KD.

    The curvature at the teacher is (1/2) (diag(p) - p p^T) for a softmax, (1/2) p (1 - p) per class
    for sigmoids, p at temperature T; the squared error's is the identity. Rows are independent, so
    gradients split by row are independent probes.

    Args:
        output: shape (rows, classes), the dense model's outputs, with a graph.
        temperature: T of `output_distance`.
        kind: the output's kind.
        generator: source of the probe.

    Returns:
        A scalar.
    """
    noise = torch.randn(output.shape, generator=generator).to(output.device)
    noise = kind.shaped(noise, output.detach().float(), temperature)
    return (noise * output.float()).sum() / len(output) ** 0.5


def class_divergences(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of the softmax of logits at a temperature, for each row; shapes (rows, classes) -> (rows,).

    The logits may be of any floating-point type; float32 has to hold a part of the rows alone, as of a vocabulary, the
    distance of a thousand rows takes gigabytes.
    """

    def divergences(*logits: Tensor) -> Tensor:
        return _divergences(*((each / temperature).log_softmax(-1) for each in logits))

    return _by_parts(divergences, student, teacher)


def switch_divergences(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of independent sigmoids at a temperature, summed over those of a row; as above."""

    def divergences(*logits: Tensor) -> Tensor:
        both = (torch.stack([each, -each], dim=-1) / temperature for each in logits)
        return _divergences(*map(torch.nn.functional.logsigmoid, both))

    return _by_parts(divergences, student, teacher)


def _by_parts(divergences: Callable[[Tensor, Tensor], Tensor], *logits: Tensor) -> Tensor:
    """Divergences of some rows at a time."""
    rows = max(1, _PART // max(1, logits[0][:1].numel()))
    parts = zip(*(each.split(rows) for each in logits), strict=True)
    return torch.cat([divergences(*map(at_least_single, part)) for part in parts])


def _divergences(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    divergences = (log_teacher.exp() * (log_teacher - log_student)).flatten(1).sum(-1)
    return divergences.clamp_min(0)  # for equal outputs, rounding may give less than 0
