"""Peaks: the most memory that is held while something runs, beside what was held before."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import torch

from ..running.memory import give_back

_STATUS, _RESTART = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMeter:
    """Measures peaks above what is held when it is made: on an accelerator by PyTorch's allocator, on the CPU by the
    process's resident memory, which only Linux tells.

    Args:
        device: where the models run.
    """

    def __init__(self, device: torch.device):
        self._on_cuda = device.type == "cuda"
        self._device = device
        gc.collect()  # what is freed later would hide a peak
        give_back()
        self._before = torch.cuda.memory_allocated(device) if self._on_cuda else _resident("VmRSS")

    def peak(self, run: Callable[[], object]) -> int | None:
        """Bytes that are held at most while `run` runs, above the start; `None` where nobody tells."""
        if self._on_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
            run()
            torch.cuda.synchronize(self._device)
            return max(0, torch.cuda.max_memory_allocated(self._device) - self._before)
        give_back()
        restarted = _restart()
        run()
        peak = _resident("VmHWM") if restarted else None
        return None if peak is None or self._before is None else max(0, peak - self._before)


def _restart() -> bool:
    """Let the process's peak start anew; whether that worked."""
    try:
        _RESTART.write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def _resident(name: str) -> int | None:
    """A line of the process's status in bytes, such as its peak `VmHWM`; `None` where there is none."""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
