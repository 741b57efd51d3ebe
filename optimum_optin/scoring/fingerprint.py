"""A model's fingerprint, which tells whether saved scores belong to it."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from ..architectures.group import Groups
from ..models.identity import type_of

_SAMPLE = 256


def fingerprint(model: nn.Module, groups: Groups) -> str:
    """SHA-256 over the model's type, its groups, its parameters' shapes, and samples of their values.

    Evenly spaced values of every parameter are enough to tell two trainings of one architecture
    apart, and take no time on a large model.

    Args:
        model: the model.
        groups: its groups.

    Returns:
        64 hexadecimal digits.
    """
    sizes = [(group.key, group.units, group.width) for group in groups]
    digest = hashlib.sha256(f"{type_of(model)}{sizes}".encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        flat = parameter.detach().flatten()
        count = min(_SAMPLE, len(flat))
        index = torch.arange(count, device=flat.device) * (len(flat) - 1) // max(count - 1, 1)
        digest.update(flat[index].float().cpu().numpy().tobytes())
    return digest.hexdigest()
