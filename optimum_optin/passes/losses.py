"""Distances between the dense and the masked network (OPTIN, Sec. 3.2).

Everything here takes tensors. `probe_*` functions draw a random linear functional r of a loss's
features, so that E[(r . J)^2] = ||J||^2: the Gauss-Newton form of the loss (see docs/source/concepts/method.mdx).
"""

from __future__ import annotations

import torch
from torch import Tensor


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


CATEGORICAL, BINARY, REAL = "categorical", "binary", "real"
"""Kinds of output: logits of a softmax, logits of independent sigmoids, numbers."""


def output_distance(student: Tensor, teacher: Tensor, temperature: float, kind: str) -> Tensor:
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
    student, teacher = student.float(), teacher.float()
    if kind == REAL:
        return (student - teacher).square().sum(-1).mean()
    log_student, log_teacher = (_log_shares(logits / temperature, kind) for logits in (student, teacher))
    divergence = (log_teacher.exp() * (log_teacher - log_student)).flatten(1).sum(-1)
    return divergence.clamp_min(0).mean() * temperature**2  # rounding takes that of equal outputs below 0


def probe_output(output: Tensor, temperature: float, kind: str, generator: torch.Generator) -> Tensor:
    """A random functional of the outputs whose squared gradient expects the curvature of L_KD.

    The curvature at the teacher is (1/2) (diag(p) - p p^T) for a softmax, (1/2) p (1 - p) per class
    for sigmoids, p at temperature T; the squared error's is the identity. Rows are independent, so
    gradients split by row are independent probes.

    Args:
        output: shape (rows, classes), the dense model's outputs, with a graph.
        temperature: T of `output_distance`.
        kind: its kind.
        generator: source of the probe.

    Returns:
        A scalar.
    """
    noise = torch.randn(output.shape, generator=generator).to(output.device)
    logits = output.detach().float() / temperature
    if kind == CATEGORICAL:
        share = logits.softmax(-1)
        noise = share.sqrt() * noise
        noise = (noise - share * noise.sum(-1, keepdim=True)) * 0.5**0.5
    elif kind == BINARY:
        share = logits.sigmoid()
        noise = noise * (share * (1 - share) / 2).sqrt()
    return (noise * output.float()).sum() / len(output) ** 0.5


def _log_shares(logits: Tensor, kind: str) -> Tensor:
    if kind == CATEGORICAL:
        return logits.log_softmax(-1)
    return torch.nn.functional.logsigmoid(torch.stack([logits, -logits], dim=-1))
