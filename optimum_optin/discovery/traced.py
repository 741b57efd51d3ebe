"""Traced groups as the `Group` that masks, scores and cuts go by: blocks of indices, linears, layers, names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from math import gcd

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..architectures.group import CHANNELS, EXPERT_NEURONS, HEADS, NEURONS, Blocks, Consumer, Cut, Group, Producer
from ..running.experts import is_packed, neurons_of_each
from ..running.linears import CONVOLUTIONS, is_convolution
from ..tracing.found import FoundGroup, Slice

_LINEARS = {nn.Linear: (0, 1), Conv1D: (1, 0)}  # the dimensions of the weight that are written and read
_ROW = 8  # numbers of 16 bits: products by expert take rows of whole 16 bytes
_CONVOLUTIONS = (*CONVOLUTIONS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Inexpressible(Exception):
    """Why what the units own of a tensor cannot be said in blocks, or not be cut."""


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


@dataclass(frozen=True)
class Part:
    """A group without a name.

    Args:
        path: of the smallest module around all that the units own.
        role: what the units are.
        units: how many there are.
        width: consumer inputs for each of them.
        cut: what is sliced.
        otherwise: the same slices, more of which are taken for what reads the units; `None` if there are none.
        tables: tables that other layers' units have a part in as well.
        parts: see `Group`.
        multiple: see `Group`.
    """

    path: str
    role: str
    units: int
    width: int
    cut: Cut
    otherwise: Cut | None = None
    tables: tuple[str, ...] = ()
    parts: int = 1
    multiple: int = 1

    @property
    def readers(self) -> set[str]:
        """Paths of the modules that read the units."""
        return {each.tensor.rpartition(".")[0] for each in self.cut.reads}


@dataclass(frozen=True)
class Named:
    """Groups with names.

    Args:
        groups: the groups.
        pooled: parts that touch no layer, if others do, and whose units are there once for each sample; no groups.
        front: parts that touch no layer, if others do, and that convolutions along time hand each other; no groups.
        parts: group key -> what it was made of.
        layers: name -> module path of all layers of the lists that groups lie in, in order of execution.
    """

    groups: tuple[Group, ...]
    pooled: tuple[Part, ...]
    front: tuple[Part, ...]
    parts: Mapping[str, Part]
    layers: Mapping[str, str]


def part_of(model: nn.Module, found: FoundGroup) -> Part:
    """A found group as a `Part`.

    Raises:
        Inexpressible: see `blocks_of`; or a weight is computed from what the units own.
    """
    for part in (*found.writes, *found.reads):
        _check_kept(model, part.tensor)
    writes, reads = ([blocks_of(part) for part in side] for side in (found.writes, found.reads))
    if (experts := _part_of_experts(model, found, writes, reads)) is not None:
        return experts
    whole = {part: consumer for part in reads if (consumer := _consumer(model, part))}
    alone = len(whole) == 1 or len(whole) == len(reads)  # what reads the units beside one of several cannot be masked
    consumers = tuple(whole.values()) if alone else ()
    # What else reads the units may well make more of them, which only that one linear reads (DeBERTa's positions).
    inner = [part for part in reads if part not in whole] if len(whole) == 1 else []
    readers = [model.get_submodule(part.tensor.rpartition(".")[0]) for part in reads]
    width = consumers[0].width if consumers else sum(reads[0].widths)
    role = NEURONS if width == 1 else HEADS
    if any(isinstance(each, _CONVOLUTIONS) for each in readers) or _is_flattened(model, writes):
        role = CHANNELS
    # One row for a whole head makes a bias or a gate of it, from something else than what heads are made of.
    makers = [part for part in writes if role != HEADS or sum(part.widths) > 1]
    producers = [
        Producer(part.tensor.rpartition(".")[0], len(part.widths))
        for part in makers
        if part.tensor.endswith(".weight") and _dims(model, part)
    ]
    tables = tuple(part.tensor for part in found.shared)
    cut = Cut(() if inner else consumers, tuple(producers), tuple(writes), tuple(reads))
    if not inner:
        return Part(found.module, role, found.units, width, cut, None, tables)
    by_one = replace(cut, consumers=consumers, writes=(*writes, *inner), reads=tuple(whole))
    return Part(found.module, role, found.units, width, by_one, cut, tables)


def _part_of_experts(
    model: nn.Module, found: FoundGroup, writes: Iterable[Blocks], reads: Iterable[Blocks]
) -> Part | None:
    """A group of packed experts, whose units are traced as a neuron of every expert, with one of each as a unit.

    The neurons of one expert have nothing to do with those of another, so each keeps its own, but equally many.
    """
    module = model.get_submodule(found.module)
    alone = all(part.tensor.rpartition(".")[0] == found.module for part in (*writes, *reads))
    if not (alone and is_packed(module) and neurons_of_each(module) == found.units):
        return None
    experts = module.num_experts
    sides = [tuple(replace(part, apart=0) for part in side) for side in (writes, reads)]
    cut = Cut((Consumer(found.module),), (), *sides)
    multiple = experts * gcd(found.units, _ROW)
    units = experts * found.units
    return Part(found.module, EXPERT_NEURONS, units, 1, cut, parts=experts, multiple=multiple)


def _is_flattened(model: nn.Module, writes: Iterable[Blocks]) -> bool:
    """Whether units are channels of a convolution, which a linear reads place by place."""
    modules = [model.get_submodule(part.tensor.rpartition(".")[0]) for part in writes]
    return any(map(is_convolution, modules)) and not any(isinstance(each, tuple(_LINEARS)) for each in modules)


def _check_kept(model: nn.Module, name: str) -> None:
    """Raise if a module computes its weight from a tensor, in which way only it knows (some crash on an empty one)."""
    path, _, own = name.rpartition(".")
    hooks = model.get_submodule(path)._forward_pre_hooks.values()
    hooked = [hook for hook in hooks if type(hook).__module__.startswith("torch.nn.utils.")]
    if "parametrizations" in path.split(".") or any(own.startswith(f"{_weight_of(hook)}_") for hook in hooked):
        raise Inexpressible(
            f"a weight is computed from {name}: remove parametrizations, norms and masks of weights first "
            "(torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.remove_weight_norm, "
            "torch.nn.utils.prune.remove)"
        )


def _weight_of(hook: object) -> str:
    """The weight that a hook of `torch.nn.utils` computes."""
    return getattr(hook, "name", None) or getattr(hook, "_tensor_name", "weight")


def _consumer(model: nn.Module, read: Blocks) -> Consumer | None:
    """The linear or convolution among whose inputs the units are, one after the other; `None` if it is none."""
    path, dims = read.tensor.rpartition(".")[0], _dims(model, read)
    if dims is None or read.dim != dims[1] or not read.tensor.endswith(".weight") or len(read.widths) > 1:
        return None
    return Consumer(path, read.widths[0])


def _dims(model: nn.Module, part: Blocks) -> tuple[int, int] | None:
    module = model.get_submodule(part.tensor.rpartition(".")[0])
    if is_convolution(module):
        return 0, 1
    return next((dims for kind, dims in _LINEARS.items() if isinstance(module, kind)), None)


def named_groups(
    model: nn.Module, parts: Iterable[Part], pooled: Collection[str] = (), last: Collection[Part] = ()
) -> Named:
    """Parts with names.

    A layer is a module in a list of modules of one class. If lists lie in each other, the outermost counts that holds a
    group of its own outside of inner ones: the blocks of a stage, and not the stages; a layer, and not its experts.

    Args:
        model: the model.
        parts: what was found, in order of execution.
        pooled: paths of modules that read one token, or place, of each sample.
        last: those of the parts that are named after all others, as they cannot be cut.
    """
    parts, lists = list(parts), _lists(model)
    chains = [[each for each in _prefixes(part.path) if each in lists] for part in parts]
    inner = {chain[-1] for chain in chains if chain}
    homes = [next((each for each in chain if each in inner), None) for chain in chains]
    names = _stack_names(list(dict.fromkeys(_form(home) for home in homes if home)))
    layers: dict[str, str] = {}
    for form, stack in names.items():
        members = sorted((path for path in lists if _form(path) == form), key=_numbers)
        layers |= {f"{stack}.{place}": path for place, path in enumerate(members)}
    name_of = {path: name for name, path in layers.items()}
    groups: dict[int, Group] = {}
    parts_of: dict[str, Part] = {}
    members: list[tuple[Part, str | None]] = []
    once: list[Part] = []
    front: list[Part] = []
    for part, home in zip(parts, homes, strict=True):
        touched = _layer_in(part, name_of)
        outside = layers and not home and not touched
        if outside and all(each in pooled for each in part.readers):
            once.append(part)
        elif outside and _is_along_time(model, part):
            front.append(part)
        else:
            members.append((part, home or (touched if part.role == CHANNELS else None)))
    # Of several groups of a role, the outermost has the plain name, and not a network that makes it a bias (SwinV2).
    after = {id(part) for part in last}
    for part, home in sorted(members, key=lambda member: (id(member[0]) in after, member[0].path.count("."))):
        # Experts are given rows, and the module around them tokens.
        path = home or _running(model, part.path.rpartition(".")[0] if part.role == EXPERT_NEURONS else part.path)
        layer = name_of[home] if home else (path.replace(".", "_") or "model")
        layers.setdefault(layer, path)
        role = part.role
        if home and not _is_in(part.path, home):  # layers hand them on
            role = f"stream_{role}"
        elif f"{layer}.{role}" in parts_of:
            role = f"{_inside(part.path, layers[layer])}{role}"
        if f"{layer}.{role}" in parts_of:
            role = f"{_writer(part, layers[layer])}_{part.role}"
        while f"{layer}.{role}" in parts_of:
            role = f"more_{role}"
        sizes = {"parts": part.parts, "multiple": part.multiple}
        groups[id(part)] = Group(layer, role, part.units, part.width, part.cut, **sizes)
        parts_of[groups[id(part)].key] = part
    return Named(tuple(groups[id(part)] for part, _ in members), tuple(once), tuple(front), parts_of, layers)


def _is_along_time(model: nn.Module, part: Part) -> bool:
    """Whether all that reads or writes units are convolutions of one dimension, but for norms."""
    modules = [model.get_submodule(each.tensor.rpartition(".")[0]) for each in (*part.cut.reads, *part.cut.writes)]
    norms = (nn.GroupNorm, nn.BatchNorm1d)
    return part.role == CHANNELS and all(isinstance(each, (nn.Conv1d, *norms)) for each in modules)


def _writer(part: Part, layer: str) -> str:
    """What to call the module in a layer that writes units first."""
    return part.cut.writes[0].tensor.rpartition(".")[0].removeprefix(layer).strip(".").replace(".", "_")


def _layer_in(part: Part, layers: Iterable[str]) -> str | None:
    """The path of the first layer that reads units, or else writes some; `None` if none does either."""
    tensors = (each.tensor for each in (*part.cut.reads, *part.cut.writes))
    return next((path for tensor in tensors for path in layers if _is_in(tensor, path)), None)


def _is_in(path: str, layer: str) -> bool:
    return path == layer or path.startswith(f"{layer}.")


def _running(model: nn.Module, path: str) -> str:
    """The module at a path, or the one around it if that is a mere list of modules, which never runs."""
    while path and isinstance(model.get_submodule(path), (nn.ModuleList, nn.ModuleDict)):
        path = path.rpartition(".")[0]
    return path


def _form(path: str) -> str:
    """A path with # for its numbers."""
    return re.sub(r"(?<![^.])\d+(?=\.|$)", "#", path)


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
