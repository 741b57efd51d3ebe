"""Fingerprints: of a model, which tells whether saved scores belong to it, and of all that scoring depends on."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from ..architectures.group import Groups
from ..config import SCORING_FIELDS, OptinConfig
from ..merging.hooks import merges_tokens
from ..models.identity import device_of, type_of
from ..passes.calibration import Calibration
from ..running.batch import digest_of
from ..running.processes import process_count
from ..version import __version__

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


def work_of(model: nn.Module, groups: Groups, calibration: Calibration, config: OptinConfig) -> dict[str, Any]:
    """All that scores depend on beside the model, by names that a user knows; for `stages.work_folder.working_in`.

    Args:
        model: the dense model.
        groups: the groups that are scored.
        calibration: its calibration.
        config: the configuration.
    """
    units = hashlib.sha256(f"{[(group.key, group.units) for group in groups]}".encode()).hexdigest()
    types = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    return {
        "optimum_optin": __version__,
        "dtype": " ".join(types),
        "device": device_of(model).type,
        "groups": units,
        **{name: getattr(config, name) for name in SCORING_FIELDS},
        "merging of tokens": merges_tokens(model, config),
        "calibration data": digest_of(calibration.batches),
        "number of processes": process_count(),
    }
