"""Traced groups as the `Group` that masks, scores and cuts go by: blocks of indices, linears, layers, names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..architectures.group import HEADS, NEURONS, Blocks, Cut, Group, Producer
from ..tracing.found import FoundGroup, Slice

CHANNELS = "channels"
_LINEARS = {nn.Linear: (0, 1), Conv1D: (1, 0)}  # the dimensions of the weight that are written and read
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Inexpressible(Exception):
    """Why what the units own of a tensor cannot be said in blocks."""


def blocks_of(part: Slice) -> Blocks:
    """What units own along a dimension, as blocks.

    Raises:
        Inexpressible: it has no such form.
    """
    first, units = part.indices[0], len(part.indices)
    ends = [place for place in range(1, len(first) + 1) if place == len(first) or first[place] != first[place - 1] + 1]
    widths = tuple(end - start for start, end in zip([0, *ends], ends, strict=False))
    start, place, expected = int(first[0]), int(first[0]), []
    for width in widths:
        expected.append(place + torch.arange(units * width).view(units, width))
        place += units * width
    if not torch.equal(torch.cat(expected, 1), part.indices):
        raise Inexpressible(f"what the units own of {part.tensor}[{part.dim}] does not lie in blocks, in their order")
    return Blocks(part.tensor, part.dim, widths, start)


def cut_of(model: nn.Module, found: FoundGroup) -> tuple[Cut, str, int]:
    """What is cut with a found group's units; their role; and the consumer's inputs for each of them.

    Raises:
        Inexpressible: see `blocks_of`.
    """
    writes, reads = ([blocks_of(part) for part in side] for side in (found.writes, found.reads))
    consumer = _consumer(model, reads, found.units)
    producers = [
        Producer(part.tensor.rpartition(".")[0], len(part.widths))
        for part in writes
        if part.tensor.endswith(".weight") and _dims(model, part) == (part.dim, 1 - part.dim)
    ]
    modules = [model.get_submodule(part.tensor.rpartition(".")[0]) for part in (*writes, *reads)]
    width = sum(reads[0].widths)
    role = CHANNELS if any(isinstance(each, _CONVOLUTIONS) for each in modules) else NEURONS if width == 1 else HEADS
    return Cut(consumer, tuple(producers), tuple(writes), tuple(reads)), role, width


def _consumer(model: nn.Module, reads: list[Blocks], units: int) -> str | None:
    """Path of the one linear that reads the units, one after the other, and nothing else."""
    (read, *others), path = reads, reads[0].tensor.rpartition(".")[0]
    dims = _dims(model, read)
    if others or dims is None or read.dim != dims[1] or not read.tensor.endswith(".weight"):
        return None
    whole = len(read.widths) == 1 and units * read.widths[0] == model.get_parameter(read.tensor).shape[read.dim]
    return path if whole else None


def _dims(model: nn.Module, part: Blocks) -> tuple[int, int] | None:
    module = model.get_submodule(part.tensor.rpartition(".")[0])
    return next((dims for kind, dims in _LINEARS.items() if isinstance(module, kind)), None)


def named_groups(model: nn.Module, cuts: Mapping[str, list[tuple[Cut, str, int, int]]]) -> tuple[list[Group], dict]:
    """Groups with names, and the layers that these are made of.

    A layer is a module in a list of modules of one class. If lists lie in each other, the outermost counts that holds a
    group of its own outside of inner ones: the blocks of a stage, and not the stages; a layer, and not its experts.

    Args:
        model: the model.
        cuts: path of the smallest module around a group -> what is cut of it, role, width and number of units.

    Returns:
        The groups, and layer -> module path of all layers of their lists, in order of execution.
    """
    lists = _lists(model)
    chains = {path: [each for each in _prefixes(path) if each in lists] for path in cuts}
    inner = {chain[-1] for chain in chains.values() if chain}
    homes = {path: next((each for each in chain if each in inner), None) for path, chain in chains.items()}
    forms = dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".#", home) for home in homes.values() if home)
    names = _stack_names(list(forms))
    layers: dict[str, str] = {}
    for form, stack in names.items():
        members = [path for path in lists if re.sub(r"\.\d+(?=\.|$)", ".#", path) == form]
        layers |= {f"{stack}.{place}": path for place, path in enumerate(sorted(members, key=_numbers))}
    name_of = {path: name for name, path in layers.items()}
    groups = []
    for path, parts in cuts.items():
        home = homes[path]
        layer = name_of[home] if home else (path.replace(".", "_") or "model")
        layers.setdefault(layer, home or path)
        groups += [(layer, path, *part) for part in parts]
    taken: Counter[tuple[str, str]] = Counter()
    found = []
    for layer, path, cut, role, width, units in groups:
        taken[layer, role] += 1
        own = role if taken[layer, role] == 1 else f"{_inside(path, layers[layer])}{taken[layer, role]}_{role}"
        found.append(Group(layer, own, units, width, cut))
    return found, layers


def _lists(model: nn.Module) -> list[str]:
    """Paths of the modules that are one of several of their class, in a list."""
    paths = []
    for path, module in model.named_modules():
        children = dict(module.named_children())
        alike = len({type(child) for child in children.values()}) == 1
        if alike and all(name.isdigit() for name in children):
            paths += [f"{path}.{name}".removeprefix(".") for name in children]
    return paths


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _numbers(path: str) -> list[int]:
    return [int(each) for each in path.split(".") if each.isdigit()]


def _inside(path: str, layer: str) -> str:
    """What to call a part of a layer: the last word of its path."""
    inside = path.removeprefix(layer).strip(".")
    return "".join(f"{word}_" for word in inside.split(".")[-1:] if word and not word.isdigit())


def _stack_names(forms: list[str]) -> dict[str, str]:
    """A name for each list of layers: `"layers"` for a single one; otherwise the first words that tell them apart."""
    if len(forms) == 1:
        return {forms[0]: "layers"}
    words = {form: [word for word in form.split(".") if word != "#"] for form in forms}
    while len({tuple(each[:1]) for each in words.values()}) == 1 and all(len(each) > 1 for each in words.values()):
        words = {form: each[1:] for form, each in words.items()}
    for count in range(1, max(map(len, words.values()), default=0) + 1):
        names = {form: "_".join(each[:count]).removesuffix("_model") for form, each in words.items()}
        if len(set(names.values())) == len(names):
            return names
    return {form: form.replace(".#", "").replace(".", "_") for form in forms}
