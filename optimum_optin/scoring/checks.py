"""Checks of scores: complete, of the model's shapes, finite, and at least 0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..architectures.group import Group
from .registry import Terms

# Not booleans and complex numbers, nor 8-bit floats, as PyTorch cannot tell whether these are finite.
_NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_NUMBERS |= {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def check_terms(terms: Terms, groups: Sequence[Group], source: str) -> None:
    """Raise if these are not scores of all units.

    Args:
        terms: see `Terms`.
        groups: the model's groups.
        source: where they come from, for the message: `"scorer 'exact'"`.

    Raises:
        ValueError: names the first group whose scores do not fit.
    """
    units = {group.key: group.units for group in groups}
    if not isinstance(terms, dict) or not terms or not all(isinstance(by_group, dict) for by_group in terms.values()):
        raise ValueError(f"{source} must return {{term: {{group key: scores}}}}, got {type(terms).__name__}.")
    for term, by_group in terms.items():
        if set(by_group) != set(units):
            odd = sorted(set(by_group) ^ set(units))
            raise ValueError(f"{source}: the {term} term has no scores for, or does not know, {odd[0]}.")
        for key, value in by_group.items():
            if not _is_score(value) or value.shape != (units[key],):
                raise ValueError(
                    f"{source}: the {term} score of {key} must be {units[key]} finite numbers of at least 0, got "
                    f"{_described(value)}: check that layer's weights and the data."
                )
        if not sum(value.double().sum() for value in by_group.values()).isfinite():
            raise ValueError(f"{source}: the sum of all {term} scores is not finite: they are too large.")
    if not any(float(value.sum()) > 0 for by_group in terms.values() for value in by_group.values()):
        raise ValueError(f"{source} scores every unit 0: masking them changes nothing that it compares.")


def check_merges(merges: Terms, layers: Iterable[str], source: str) -> None:
    """Raise if these are not losses of merging tokens (`score_merges`); an empty dict is fine.

    Args:
        merges: term -> layer -> loss of each further pair.
        layers: the model's layers.
        source: see `check_terms`.

    Raises:
        ValueError: names the first layer whose losses do not fit.
    """
    expected = set(list(layers)[:-1])
    for term, by_layer in merges.items():
        if set(by_layer) != expected:
            odd = sorted(set(by_layer) ^ expected)
            raise ValueError(f"{source}: the {term} term has no scores of tokens for, or does not know, {odd[0]}.")
        for layer, value in by_layer.items():
            if not _is_score(value):
                raise ValueError(
                    f"{source}: the {term} score of tokens after {layer} must be finite numbers of at least 0, got "
                    f"{_described(value)}."
                )


def _is_score(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dim() == 1
        and value.dtype in _NUMBERS
        and bool(value.isfinite().all())
        and not bool((value < 0).any())
    )


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    smallest = f", smallest {float(value.min()):.3g}" if value.numel() and value.dtype in _NUMBERS else ""
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}{smallest}"
