"""Offloaded weights: while a model is worked on, those that Accelerate keeps in files are pages of these files."""

from __future__ import annotations

import math
import mmap
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset
from torch import Tensor, nn

from ..files.tensor_headers import DTYPE_NAMES, Header, read_header

# What Accelerate puts on a model that it has spread; one that is worked on, and copies of it, are ordinary ones.
_ADDED = ("hf_device_map", "to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa")
# Else Linux maps no file for writing, not even to pages of one's own, that is larger than memory and swap.
_UNBOUNDED = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_ALIGNED = 64  # bytes

Place = tuple[Any, ...]
"""Where a tensor is: its file as it is now, where in it, and its type."""

_CONVERTED: WeakKeyDictionary[nn.Module, dict[Place, Tensor]] = WeakKeyDictionary()
"""For each model, what had to be converted of its weights, which takes a pass over them: pages of a file that has no
name, and is there for as long as the model is."""


def take_in(model: nn.Module) -> None:
    """Let a model hold the weights that Accelerate has offloaded, and run without Accelerate's hooks, in place.

    The weights take no memory of their own: the system reads pages of their files when they are used, and drops them
    when it needs the room. What is written to them does not reach the files. Nothing is done unless the whole model
    runs on the CPU, and no weight is missing but those that were offloaded. A `Snapshot` from before undoes all of it.

    Raises:
        OSError: a file cannot be read, or there is no room for what must be converted.
        ValueError: a file is damaged, or holds a weight of another shape; names it.
    """
    if not any("_hf_hook" in vars(module) for module in model.modules()):
        return
    offloaded = list(_offloaded(model))
    if not offloaded or not _runs_on_cpu(model) or not _is_complete(model, offloaded):
        return
    found = _tensors(model, offloaded)
    one_for: dict[int, Tensor] = {}  # what was one tensor, or is one in a file, is one
    for each in offloaded:
        value = found[each.path]
        new = one_for.get(id(each.tensor), one_for.get(id(value)))
        if new is None:
            is_parameter = isinstance(each.tensor, nn.Parameter)
            new = nn.Parameter(value, each.tensor.requires_grad) if is_parameter else value
        each.tensors[each.name] = one_for[id(each.tensor)] = one_for[id(value)] = new
    _tie(model)
    for module in model.modules():
        _unhook(module)


class _Offloaded:
    """A tensor that was offloaded.

    Args:
        path: its name in the model.
        tensors: the parameters, or the buffers, of the module that it belongs to.
        name: its name there.
        weights: where Accelerate finds it.
        key: by what name.
    """

    def __init__(self, path: str, tensors: dict[str, Any], name: str, weights: Mapping[str, Tensor], key: str) -> None:
        while isinstance(weights, PrefixedDataset):
            weights, key = weights.dataset, f"{weights.prefix}{key}"
        self.path, self.tensors, self.name, self.weights, self.key = path, tensors, name, weights, key
        self.tensor: Tensor = tensors[name]

    def is_there(self) -> bool:
        """Whether Accelerate finds it, without reading it."""
        if isinstance(self.weights, OffloadedWeightsLoader):
            return self.key in self.weights.state_dict or self.key in self.weights.index
        return self.key in self.weights


def _hooks(module: nn.Module) -> Iterator[Any]:
    waiting = [vars(module)["_hf_hook"]] if "_hf_hook" in vars(module) else []
    while waiting:
        hook = waiting.pop()
        if isinstance(hook, SequentialHook):
            waiting += hook.hooks
        else:
            yield hook


def _offloaded(model: nn.Module) -> Iterator[_Offloaded]:
    """The tensors that hooks bring in for a pass, and take out again."""
    for path, module in model.named_modules():
        for hook in _hooks(module):
            if not isinstance(hook, AlignDevicesHook) or not hook.offload or hook.weights_map is None:
                continue
            for inner, owner in module.named_modules() if hook.place_submodules else [("", module)]:
                for tensors in (owner._parameters, owner._buffers):
                    for name, tensor in tensors.items():
                        key = f"{inner}.{name}" if inner else name
                        if tensor is not None and tensor.is_meta:
                            place = f"{path}.{key}" if path else key
                            if (each := _Offloaded(place, tensors, name, hook.weights_map, key)).is_there():
                                yield each


def _runs_on_cpu(model: nn.Module) -> bool:
    """Whether all that Accelerate has put on a model lets it run on the CPU, and does nothing else to it."""
    hooks = [hook for module in model.modules() for hook in _hooks(module)]
    tensors = [*model.parameters(), *model.buffers()]
    return all(
        isinstance(hook, AlignDevicesHook) and str(hook.execution_device).partition(":")[0] in ("cpu", "None")
        for hook in hooks
    ) and all(tensor.is_meta or tensor.device.type == "cpu" for tensor in tensors)


def _is_complete(model: nn.Module, offloaded: list[_Offloaded]) -> bool:
    """Whether every weight without values was offloaded, or is one with another that was."""
    there = {each.path for each in offloaded} | {name for name, each in model.named_parameters() if not each.is_meta}
    for one, other in _ties(model):
        there |= {one, other} if {one, other} & there else set()
    names = (name for name, each in model.named_parameters(remove_duplicate=False) if each.is_meta)
    return all(name in there for name in names)


def _ties(model: nn.Module) -> list[tuple[str, str]]:
    """Names of weights that are one by the model's class, in pairs."""
    return list((getattr(model, "all_tied_weights_keys", None) or {}).items())


def _tie(model: nn.Module) -> None:
    """Let weights be one again that are by the model's class, in place: in a pass, Accelerate makes two of them."""
    for names in _ties(model):
        try:
            tensors = {name: model.get_parameter(name) for name in names}
        except AttributeError:  # names of buffers, or of parts that this model does not have
            continue
        one, other = sorted(names, key=lambda name: not tensors[name].is_meta)  # the one that may have no values first
        first, second = tensors[one], tensors[other]
        same = first is not second and first.shape == second.shape
        if same and (first.is_meta or torch.equal(first, second)):
            path, _, name = one.rpartition(".")
            model.get_submodule(path)._parameters[name] = second


def _unhook(module: nn.Module) -> None:
    attributes = vars(module)
    for name in _ADDED:
        attributes.pop(name, None)
    if attributes.pop("_hf_hook", None) is None:
        return
    forward = attributes.pop("_old_forward", None)
    attributes.pop("forward", None)
    is_own = isinstance(forward, MethodType) and forward.__func__ is type(module).forward
    if forward is not None and not is_own:
        attributes["forward"] = forward


def _tensors(model: nn.Module, offloaded: list[_Offloaded]) -> dict[str, Tensor]:
    """The tensors by their names in the model; one for each place in a file."""
    files, found = _Files(), {}
    at: dict[Place, Tensor] = {}
    waiting: dict[Place, _Offloaded] = {}
    places: dict[str, Place] = {}
    for each in offloaded:
        weights, dtype = each.weights, each.tensor.dtype
        if not isinstance(weights, OffloadedWeightsLoader) or each.key in weights.state_dict:
            found[each.path] = weights[each.key].to(dtype)  # it is in memory anyway
            continue
        entry = weights.index[each.key]
        file, name = entry.get("safetensors_file"), entry.get("weight_name", each.key)
        file = Path(weights.save_folder, f"{each.key}.dat") if file is None else Path(file)
        places[each.path] = place = (*files.state(file), name, dtype)
        if place in at or place in waiting:
            continue
        value = files.raw(file, entry, dtype) if file.suffix == ".dat" else files.tensor(file, name, dtype)
        if value is None:
            waiting[place] = each
        else:
            at[place] = value
    at |= _converted(model, waiting)
    found |= {path: at[place] for path, place in places.items()}
    for each in offloaded:
        if found[each.path].shape != each.tensor.shape:
            raise ValueError(
                f"weight {each.path} has the shape {tuple(each.tensor.shape)}, and {tuple(found[each.path].shape)} in "
                "the file that it was offloaded to: load the model again."
            )
    return found


class _Files:
    """Files of weights that are mapped, each once."""

    def __init__(self) -> None:
        self._headers: dict[Path, Header] = {}
        self._maps: dict[Path, mmap.mmap] = {}

    def state(self, file: Path) -> Place:
        """What changes when another file takes the place of a file."""
        state = file.stat()
        return str(file), state.st_mtime_ns, state.st_size

    def tensor(self, file: Path, name: str, dtype: torch.dtype) -> Tensor | None:
        """A tensor of a safetensors file; `None` if it is of another type there, or of one that we have no name for."""
        if file not in self._headers:
            self._headers[file] = read_header(file)
        header = self._headers[file]
        if name not in header.forms:
            raise ValueError(f"{file} does not hold {name} any more: load the model again.")
        form, (start, _) = header.forms[name], header.places[name]
        return self._at(file, start, dtype, form.shape) if form.dtype == DTYPE_NAMES.get(dtype) else None

    def raw(self, file: Path, entry: Mapping[str, Any], dtype: torch.dtype) -> Tensor | None:
        """The tensor of a file that Accelerate wrote; `None` if it is of another type there."""
        is_same = entry["dtype"] == str(dtype).removeprefix("torch.")
        return self._at(file, 0, dtype, tuple(entry["shape"])) if is_same else None

    def _at(self, file: Path, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        if file not in self._maps and 0 not in shape:  # a file without a byte cannot be mapped
            with open(file, "rb") as opened:
                self._maps[file] = _mapped(opened.fileno())
        return _tensor_at(self._maps.get(file), start, dtype, shape)


def _mapped(descriptor: int) -> mmap.mmap:
    """The pages of a file, with pages of one's own in their place once they are written to."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    return mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE | _UNBOUNDED, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _tensor_at(pages: mmap.mmap | None, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor whose numbers are pages; one without numbers takes none."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(pages, dtype=dtype, count=math.prod(shape), offset=start).view(shape)


def _converted(model: nn.Module, wanted: Mapping[Place, _Offloaded]) -> dict[Place, Tensor]:
    """Tensors that are of another type in their files, one after the other, as pages of a file without a name."""
    known = _CONVERTED.get(model, {})
    if missing := {place: each for place, each in wanted.items() if place not in known}:
        folder = next(iter(missing.values())).weights.save_folder
        starts: dict[Place, int] = {}
        with tempfile.TemporaryFile(dir=folder) as file:
            for place, each in missing.items():
                value = each.weights[each.key].to(each.tensor.dtype).contiguous()
                file.write(b"\0" * (-file.tell() % _ALIGNED))
                starts[place] = file.tell()
                file.write(memoryview(value.view(-1).view(torch.uint8).numpy()))
            file.write(b"\0")  # no file without a byte can be mapped
            file.flush()
            pages = _mapped(file.fileno())
        known = dict(known)
        for place, each in missing.items():
            known[place] = _tensor_at(pages, starts[place], each.tensor.dtype, tuple(each.tensor.shape))
        _CONVERTED[model] = {place: known[place] for place in wanted}
    return {place: known[place] for place in wanted}
