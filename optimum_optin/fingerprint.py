"""A model's fingerprint: tells whether saved scores belong to it."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_SAMPLE = 256


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the model's type, its parameters' names and shapes, and samples of their values.

    Evenly spaced values of every parameter are enough to tell two trainings of one architecture
    apart, and take no time on a large model. Device and dtype of float32-exact values do not matter.

    Args:
        model: a `transformers` model.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(str(getattr(model.config, "model_type", type(model).__name__)).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        flat = parameter.detach().flatten()
        index = torch.linspace(0, max(len(flat) - 1, 0), min(_SAMPLE, len(flat)), device=flat.device).long()
        digest.update(flat[index].float().cpu().numpy().tobytes())
    return digest.hexdigest()
