"""The machine that times are measured on: hardware, threads, versions, and how busy it was."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from ..models.identity import device_of, dtype_of
from ..version import __version__
from .hardware import hardware

_PACKAGES = ("torch", "transformers", "onnx", "onnxruntime")
_BUSY = 0.5  # processes that want to run beside the benchmark, on average


@dataclass(frozen=True)
class Machine:
    """What a benchmark ran on.

    Args:
        device: `"cpu"`, `"cuda"`, ...
        hardware: the device's name, as its maker gives it.
        system: the operating system.
        cpus: how many CPUs the process may use.
        threads: how many threads a model may use.
        load: how many processes wanted to run in the minute before; `None` where nobody tells.
        versions: package -> version, with Python's.
    """

    device: str
    hardware: str
    system: str
    cpus: int
    threads: int
    load: float | None
    versions: dict[str, str]

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        lines = [
            f"{self.hardware}, {self.device}, {self.threads} threads on {self.cpus} CPUs, {self.system}",
            versions,
        ]
        if self.load is not None and self.load > _BUSY:
            lines.append(f"the machine was busy before: {self.load:.1f} processes wanted to run on average")
        return "\n".join(lines)


def this_machine(device: torch.device) -> Machine:
    """The machine as it is now, with the threads that PyTorch has."""
    return Machine(
        device=device.type,
        hardware=hardware(device),
        system=f"{platform.system()} {platform.release()}",
        cpus=cpus(),
        threads=torch.get_num_threads(),
        load=_load(),
        versions={"python": platform.python_version(), "optimum-optin": __version__, **_versions()},
    )


def setting_of(model: nn.Module) -> dict[str, Any]:
    """What a model's times depend on besides its shapes, as reports tell it: device, hardware, threads and dtype."""
    device = device_of(model)
    return {
        "device": device.type,
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype_of(model)).removeprefix("torch."),
    }


def cpus() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch have so many threads; undone on exit."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
