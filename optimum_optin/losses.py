"""Distances between the dense and the masked network (OPTIN, Sec. 3.2).

Everything here takes tensors. `probe_*` functions draw a random linear functional r of a loss's
features, so that E[(r . J)^2] = ||J||^2: the Gauss-Newton form of the loss (see docs/method.md).
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


def output_distance(student: Tensor, teacher: Tensor, temperature: float, categorical: bool) -> Tensor:
    """L_KD, distance of the outputs, averaged over rows.

    Args:
        student: outputs, shape (rows, classes).
        teacher: outputs of the dense model, same shape.
        temperature: T; the divergence is taken at logits / T and multiplied by T^2.
        categorical: KL divergence of the softmax if true; otherwise squared error, for regression
            and pooled embeddings, where KL is zero or means nothing.

    Returns:
        A scalar.
    """
    student, teacher = student.float(), teacher.float()
    if not categorical:
        return (student - teacher).square().sum(-1).mean()
    log_student = (student / temperature).log_softmax(-1)
    log_teacher = (teacher / temperature).log_softmax(-1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(-1).mean() * temperature**2


def probe_output(output: Tensor, temperature: float, categorical: bool, generator: torch.Generator) -> Tensor:
    """A random functional of the outputs whose squared gradient expects the curvature of L_KD.

    KL's curvature at the teacher is (1/2) (diag(p) - p p^T), p at temperature T; the squared
    error's is the identity. Rows are independent, so gradients split by row are independent probes.

    Args:
        output: shape (rows, classes), the dense model's outputs, with a graph.
        temperature: T of `output_distance`.
        categorical: which of its two forms.
        generator: source of the probe.

    Returns:
        A scalar.
    """
    noise = torch.randn(output.shape, generator=generator).to(output.device)
    if categorical:
        share = (output.detach().float() / temperature).softmax(-1)
        noise = share.sqrt() * noise
        noise = (noise - share * noise.sum(-1, keepdim=True)) * 0.5**0.5
    return (noise * output.float()).sum() / len(output) ** 0.5
