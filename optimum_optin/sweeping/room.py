"""Room: how many models are refitted in one walk, and how many are loaded to be timed in turn."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..architectures.group import Groups, consumers_by_path
from ..passes.calibration import Calibration
from ..running.linears import is_convolution, is_linear, weight_of

MOST = 8  # models at once
_LEAST = 2**32  # bytes that a machine is taken to have room for beside the dense model
_MODELS = 3  # so many of the dense model's size it has room for in any case: trial cuts take as many
_TENSORS = 4  # that a paused pass holds of each batch, of the size of what a consumer writes


def models_at_once(model: nn.Module, groups: Groups, calibration: Calibration | None, *, refits: bool) -> int:
    """How many models are pruned in one walk.

    It goes by the sizes of model and data alone, so that a run that goes on somewhere else does the same.

    Args:
        model: the dense model.
        groups: its groups.
        calibration: its calibration; `None` if there is none.
        refits: whether they are refitted, so that passes of all data wait in memory.
    """
    waiting = _waiting(model, groups, calibration) if refits else 0
    return max(1, min(MOST, _room(model) // (_bytes(model) + waiting)))


def parts_that_fit(model: nn.Module, sizes: Sequence[int]) -> list[list[int]]:
    """Places of models in parts, in order, each with as many as there is room for, or one.

    Args:
        model: the dense model.
        sizes: bytes of each model.
    """
    parts: list[list[int]] = []
    left = 0
    for place, size in enumerate(sizes):
        if not parts or size > left:
            parts.append([])
            left = _room(model)
        parts[-1].append(place)
        left -= size
    return parts


def _waiting(model: nn.Module, groups: Groups, calibration: Calibration) -> int:
    """Bytes that the passes of one pruned model hold while they wait for each other, about."""
    tokens = sum(real.numel() for masks in calibration.real for real in masks.values())
    rows: dict[str, int] = {}
    for start in filter(None, calibration.starts or ()):
        for path, weights in start.weights.items():
            rows[path] = rows.get(path, 0) + weights.numel()
    written = [
        rows.get(path, tokens) * len(weight_of(model.get_submodule(path)))
        for path in consumers_by_path(groups)
        if is_linear(model.get_submodule(path)) or is_convolution(model.get_submodule(path))
    ]
    return _TENSORS * 4 * max(written, default=0)


def _room(model: nn.Module) -> int:
    return max(_LEAST, _MODELS * _bytes(model))


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.parameters())
