"""Like tensors of different layers, and which of them may be spoilt in one pass without being taken for each other."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from .barriers import Reader

Reached = Mapping[Reader, Tensor]


def kinds_of(tensors: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Names of tensors in kinds: of the same shape, and of names that differ in numbers alone."""
    kinds = defaultdict(list)
    for name, tensor in tensors.items():
        kinds[re.sub(r"\d+", "#", name), tensor.shape, tensor.dtype].append(name)
    return [tuple(names) for names in kinds.values()]


def code_bits(count: int) -> int:
    """How many bits tell so many things apart."""
    return max(1, (count - 1).bit_length())


def readers_by_name(names: tuple[str, ...], reach: Callable[[Iterable[str]], Reached]) -> dict[str, set[Reader]]:
    """Which readers each tensor reaches.

    Args:
        names: the tensors.
        reach: what spoiling all of these tensors reaches.

    Returns:
        Tensor name -> readers.
    """
    if len(names) == 1:
        return {names[0]: set(reach(names))}
    found: dict[str, set[Reader]] = {name: set() for name in names}
    numbers = torch.arange(len(names))
    codes: dict[Reader, list[list[bool]]] = defaultdict(list)
    for bit in range(code_bits(len(names))):
        halves = [set(reach([names[i] for i in (numbers >> bit & 1 == value).nonzero().flatten()])) for value in (0, 1)]
        for reader in halves[0] | halves[1]:
            codes[reader].append([reader in half for half in halves])
    if any(zero and one for bits in codes.values() for zero, one in bits):  # somebody is reached by several
        return {name: set(reach([name])) for name in names}
    for reader, bits in codes.items():
        number = sum(one << bit for bit, (_, one) in enumerate(bits))
        found[names[number]].add(reader)
    return found


def apart(readers: Mapping[str, set[Reader]]) -> list[dict[Reader, str]]:
    """Tensors in classes, of which no two reach the same reader; each class as reader -> the tensor that reaches it."""
    classes: list[dict[Reader, str]] = []
    for name, reached in readers.items():
        owner = next((each for each in classes if not reached & set(each)), None)
        if owner is None:
            classes.append(owner := {})
        owner |= dict.fromkeys(reached, name)
    return [owner for owner in classes if owner]
