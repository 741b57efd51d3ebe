"""Several processes on one calibration set: each works on its share of the batches, and sums are added up.

`accelerate launch` starts the processes; Accelerate's state knows them. Every process holds the whole model and the
whole list of batches, draws the same random numbers for a batch (`randomness.py`), and ends with the same result as a
single process, but for rounding. Alone, every function here does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers.utils.logging import tqdm


def is_main() -> bool:
    """Whether this process is the one that writes and reports."""
    return PartialState().is_main_process


def process_count() -> int:
    """How many processes there are."""
    return PartialState().num_processes


def my_share(count: int) -> range:
    """Which of `count` batches (probes, groups) this process works on."""
    state = PartialState()
    return range(state.process_index, count, state.num_processes)


def check_processes(batches: int) -> None:
    """Raise if there is not a batch for every process.

    Raises:
        ValueError: fewer batches than processes.
    """
    processes = process_count()
    if batches < processes:
        raise ValueError(
            f"{processes} processes share {batches} calibration batches (or probes): use more samples, or fewer "
            "processes."
        )


def add_up(*tensors: Tensor) -> None:
    """Add every process's tensors to those of the others, in place; returns nothing."""
    if process_count() > 1:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def take_from_main(*tensors: Tensor) -> None:
    """Overwrite tensors with the main process's, in place; returns nothing."""
    if process_count() > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)


def on_main(compute: Callable[[], Any]) -> Any:
    """What the main process computes, on every process."""
    result = [compute() if is_main() else None]
    if process_count() > 1:
        torch.distributed.broadcast_object_list(result, src=0)
    return result[0]


def wait() -> None:
    """Wait for the other processes."""
    PartialState().wait_for_everyone()


def progress(items: Iterable, description: str, unit: str) -> tqdm:
    """A progress bar, on the main process alone."""
    return tqdm(items, desc=description, unit=unit, disable=not is_main())
