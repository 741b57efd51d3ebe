"""Files of tensors that are written completely or not at all, in order, with the devices that the tensors were on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_DEVICES = "devices"  # the entry of the metadata that holds names and devices, in order


class SavedTensors(Mapping[str, Tensor]):
    """The tensors of a file, each read when it is asked for, onto the device that it was on.

    Args:
        file: a file of `write_tensors`.

    Attributes:
        notes: what was noted beside the tensors.

    Raises:
        ValueError: the file is damaged.
        FileNotFoundError: there is none.
    """

    def __init__(self, file: Path):
        self._file = file
        try:
            self._opened = safe_open(str(file), framework="pt")
            notes = {name: json.loads(text) for name, text in (self._opened.metadata() or {}).items()}
            devices = notes.pop(_DEVICES)
            if set(devices) != set(self._opened.keys()):
                raise ValueError("other tensors than were written")
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error
        self.notes, self._devices = notes, devices

    def __getitem__(self, name: str) -> Tensor:
        device = self._devices[name]
        try:
            return self._opened.get_tensor(name).to(device)
        except SafetensorError as error:
            raise self._damaged(error) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._devices)

    def __len__(self) -> int:
        return len(self._devices)

    def _damaged(self, error: Exception) -> ValueError:
        return ValueError(f"{self._file} is damaged ({error!r}): delete it, and that part of the work is done again.")


def write_tensors(file: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, object]) -> None:
    """Write tensors into a file, completely or not at all.

    Args:
        file: the file, in a folder that is there.
        tensors: by name; their order is kept.
        notes: words and numbers to keep beside them.

    Raises:
        OSError: it cannot be written; an earlier one is still there.
    """
    part = file.with_name(f"{file.name}.part")
    devices = {name: str(tensor.device) for name, tensor in tensors.items()}
    metadata = {name: json.dumps(value) for name, value in {**notes, _DEVICES: devices}.items()}
    try:
        try:
            save_file(_apart(tensors), part, metadata)
        except SafetensorError as error:  # a full disk, among others
            raise OSError(f"cannot write {part}: {error}") from error
        with open(part, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(part, file)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def fill(targets: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Overwrite tensors with saved ones of the same names, in place.

    Raises:
        ValueError: a tensor is missing, or of another shape or type.
    """
    for name, target in targets.items():
        found = saved.get(name)
        if found is None or found.shape != target.shape or found.dtype != target.dtype:
            got = "nothing" if found is None else f"{found.dtype} of shape {tuple(found.shape)}"
            raise ValueError(f"{name} must be {target.dtype} of shape {tuple(target.shape)}, got {got}")
        target.copy_(found)


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under longer names."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors whose names begin so, under what follows."""
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as a file takes them: on the CPU, dense, and none in the memory of another."""
    found: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        dense = tensor.detach().cpu().contiguous()
        storage = dense.untyped_storage()
        if storage.data_ptr() in memory or storage.nbytes() != dense.nbytes:
            dense = dense.clone(memory_format=torch.contiguous_format)
        memory.add(dense.untyped_storage().data_ptr())
        found[name] = dense
    return found
