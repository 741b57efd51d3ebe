"""Which layers of a model can merge tokens: those of its one stack of images, its own or that of its backbone."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from ..architectures.group import Groups
from ..architectures.registry import known_architectures
from ..discovery.declared import declared_layers, key_projection
from ..models.identity import type_of


def key_paths(model: nn.Module) -> dict[str, str]:
    """Path of each layer that can merge tokens -> path of the linear that makes its keys, gone or not; in order.

    Raises:
        ValueError: tokens of this model cannot be merged, see `key_projection`.
    """
    prefix, part = _part(model)
    keys = key_projection(part)
    paths = [f"{prefix}{path}" for path in declared_layers(part).values()]
    return {path: f"{path}.{keys}" for path in paths}


def token_layers(model: nn.Module, groups: Groups) -> dict[str, str]:
    """Name -> path of the layers that can merge tokens, in order; others may follow, those of a head on a backbone.

    Raises:
        ValueError: see `key_paths`.
    """
    able = key_paths(model)
    return {name: path for name, path in groups.layers.items() if path in able}


def _part(model: nn.Module) -> tuple[str, nn.Module]:
    """The model whose row of the table tells of layers, after its path: the model itself, or else its one backbone."""
    if type_of(model) in known_architectures() or getattr(model, "main_input_name", None) != "pixel_values":
        return "", model
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        known = path and isinstance(module, PreTrainedModel) and type_of(module) in known_architectures()
        if known and not any(path.startswith(outer) for outer in found):
            found[f"{path}."] = module
    return next(iter(found.items())) if len(found) == 1 else ("", model)
