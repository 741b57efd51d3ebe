"""Weights of modules in safetensors: each tensor written once, and read into a module of the same shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_FEW = 5  # names in an error


def write_weights(module: nn.Module, file: Path, notes: Mapping[str, str]) -> None:
    """Write the parameters and buffers of a module; of several names for one tensor, the first is written.

    Args:
        module: the module.
        file: where to.
        notes: texts for the metadata.

    Raises:
        ValueError: the module keeps something else than tensors among its weights.
    """
    same, state = shared_names(module), {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name} of {type(module).__name__} is a {type(value).__name__}, which is no tensor (get_extra_state): "
                "safetensors cannot keep it."
            )
        if name not in same:
            state[name] = value.detach().cpu().clone().contiguous()  # a copy: views of one storage are refused
    save_file(state, file, metadata={"format": "pt", **notes})


def read_weights(module: nn.Module, file: Path, same: Mapping[str, str], made: str) -> None:
    """Put the weights of a file into a module, in their own types; in place.

    Args:
        module: the module, which may be on the meta device.
        file: the file.
        same: name -> first name of the same tensor, see `shared_names`.
        made: what to call whatever made the module, in an error.

    Raises:
        ValueError: the file is damaged, or the names and shapes in it are not those of the module.
    """
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"the weights in {file} are damaged: {error}.") from error
    expected = {name: value for name, value in module.state_dict().items() if name not in same}
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        said = [f"it lacks {_few(missing)}"] * bool(missing) + [f"it holds {_few(unexpected)}"] * bool(unexpected)
        raise ValueError(
            f"{file} does not fit what {made} makes: {' and '.join(said)}. Either it is not the dense module that was "
            "pruned, or the file is damaged."
        )
    for name, value in expected.items():
        if state[name].shape != value.shape:
            raise ValueError(
                f"{file} does not fit what {made} makes: {name} has the shape {tuple(state[name].shape)} there, and "
                f"{tuple(value.shape)} here. Make the dense module with the sizes that it was pruned with."
            )
        if state[name].is_floating_point() != value.is_floating_point():
            raise ValueError(
                f"{file} does not fit what {made} makes: {name} is {state[name].dtype} there, {value.dtype} here."
            )
    state |= {name: state[first] for name, first in same.items() if first in state}
    module.load_state_dict(state, strict=True, assign=True)
    for name, first in same.items():  # one tensor again
        path, _, last = name.rpartition(".")
        setattr(module.get_submodule(path), last, _at(module, first))


def shared_names(module: nn.Module) -> dict[str, str]:
    """Name of each parameter or buffer that is the same tensor as one of an earlier name -> that name."""
    first: dict[int, str] = {}
    return {name: first[id(each)] for name, each in _named(module) if first.setdefault(id(each), name) != name}


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _at(module: nn.Module, name: str) -> Tensor:
    path, _, last = name.rpartition(".")
    return getattr(module.get_submodule(path), last)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return f"{', '.join(names[:_FEW])}{more}"


def without_values(module: nn.Module) -> str | None:
    """What of a module on the meta device no weights on disk would fill: a buffer that is not saved, or another tensor.

    Returns:
        Its name; `None` if the weights fill everything.
    """
    for path, each in module.named_modules():
        for name, value in vars(each).items():
            if name not in ("_parameters", "_modules", "_buffers") and _holds_meta(value):
                return f"{path}.{name}".removeprefix(".")
        for name in each._non_persistent_buffers_set:
            if each._buffers.get(name) is not None and each._buffers[name].is_meta:
                return f"{path}.{name}".removeprefix(".")
    return None


def _holds_meta(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.is_meta
    if isinstance(value, torch.device):
        return value.type == "meta"
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return any(map(_holds_meta, inside))
