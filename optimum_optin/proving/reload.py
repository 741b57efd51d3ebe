"""A trial of saving: a copy of a model is cut to half of its units, saved, loaded and compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architectures.group import Group
from ..editing.surgery import rewrite
from ..files.held import temporary_folder
from ..keeping.interruption import raise_interruption
from ..plain_modules.saving import reloaded_module
from ..running.batch import Batch
from ..running.forward import call_model
from ..running.prepared import copy_of
from ..storage.record import record_structure
from ..storage.structure import structure_of
from ..storage.tasks import maker_of

_ROUNDING = 1e-4  # of the largest number that is compared


@torch.no_grad()
def reload_problem(model: nn.Module, groups: Iterable[Group], sample: Batch) -> str | None:
    """Why a model could not be loaded as it was saved, once half of its units are gone; `None` if it could.

    A copy is cut, saved to a temporary folder, and loaded by the Auto class that makes the model, `AutoModel` if it is
    one of them, or by the model's own class; a plain module by `load_pruned`.

    Args:
        model: the model, unchanged.
        groups: what to cut of it.
        sample: inputs to compare outputs on.
    """
    groups = list(groups)
    cut = copy_of(model, apart=False).eval()
    masks = {group.key: _half(group) for group in groups}
    rewrite(cut, groups, masks)
    try:
        record_structure(cut, structure_of(groups, masks), groups)
        expected = _numbers(call_model(cut, sample))
        found = _numbers(call_model(_loaded(cut, model), sample))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever transformers may raise that cannot save, load or run it
        raise_interruption(error)
        message = str(error).strip().partition("\n")[0]
        return f"cut to half and saved, it does not load ({type(error).__name__}: {message})"
    if [each.shape for each in found] != [each.shape for each in expected]:
        return "cut to half, saved and loaded, its outputs have other shapes"
    for one, other in zip(found, expected, strict=True):
        off = float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
        most = max(1.0, float(other.double().abs().max())) if one.numel() else 1.0
        if not off <= _ROUNDING * most:
            return f"cut to half, saved and loaded, its outputs are off by {off:.2g}"
    return None


def _loaded(cut: nn.Module, model: nn.Module) -> nn.Module:
    """What is loaded of a cut model once it was saved."""
    if not isinstance(model, PreTrainedModel):
        return reloaded_module(cut, model)
    with temporary_folder() as folder:
        cut.save_pretrained(folder)
        return maker_of(model).from_pretrained(folder, dtype=model.dtype).to(model.device).eval()


def _half(group: Group) -> Tensor:
    """Every other unit, or the first ones if more have to stay."""
    every_other = group.every_other()
    return every_other if int(every_other.sum()) >= group.least else group.first(group.least)


def _numbers(value: Any) -> list[Tensor]:
    """All tensors of numbers in a model's output, but what it keeps for further passes."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        return [each for name, part in value.items() if name != "past_key_values" for each in _numbers(part)]
    return [each for part in value for each in _numbers(part)] if isinstance(value, (list, tuple)) else []
