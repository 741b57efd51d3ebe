"""Several processes on one calibration set: each works on its share of the batches, and sums are added up.

`accelerate launch` starts the processes; Accelerate's state knows them. Every process holds the whole model and the
whole list of batches, draws the same random numbers for a batch (`randomness.py`), and ends with the same result as a
single process, but for rounding. Alone, every function here does nothing.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object, parse_flag_from_env
from torch import Tensor
from transformers.utils.logging import tqdm


def state() -> PartialState:
    """Accelerate's state of the processes, made if nobody did.

    For processes that were launched on the CPU, it is made with `cpu=True`: otherwise Accelerate takes each of them for
    the only one.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    here = PartialState(cpu="LOCAL_RANK" in os.environ and on_cpu)
    if here.num_processes > 1:
        _leave_at_exit()
    return here


@functools.cache
def _leave_at_exit() -> None:
    """Have the group of processes closed at exit: while its threads run, an interpreter that ends may abort."""
    atexit.register(lambda: PartialState().destroy_process_group())


def is_main() -> bool:
    """Whether this process is the one that writes and reports."""
    return state().is_main_process


def process_count() -> int:
    """How many processes there are."""
    return state().num_processes


def process_index() -> int:
    """Which of the processes this one is, from 0."""
    return state().process_index


def my_share(count: int) -> range:
    """Which of `count` batches (probes, groups) this process works on."""
    here = state()  # numbers, as random streams go by them; Accelerate's `split_between_processes` hands out things
    return range(here.process_index, count, here.num_processes)


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
            torch.distributed.all_reduce(tensor)  # Accelerate's `reduce` would copy what may be large


def take_from_main(*tensors: Tensor) -> None:
    """Overwrite tensors with the main process's, in place; returns nothing."""
    if process_count() > 1:
        broadcast(tensors)


def on_main(compute: Callable[[], Any]) -> Any:
    """What the main process computes, on every process."""
    return broadcast_object_list([state().on_main_process(compute)()])[0]


def first_of_all(value: Any) -> Any:
    """The first process's value that is not `None`, on every process."""
    values = gather_object([value]) if process_count() > 1 else [value]
    return next((each for each in values if each is not None), None)


def together(compute: Callable[[], Any]) -> Any:
    """What each process computes, or an error on all of them if one fails: otherwise the others would wait for ever.

    Raises:
        OSError, ValueError: the process's own; a `ValueError` where it is another's.
    """
    value, failure = None, None
    try:
        value = compute()
    except (OSError, ValueError) as error:
        failure = error
    found = first_of_all(None if failure is None else str(failure))
    if failure is not None:
        raise failure
    if found is not None:
        raise ValueError(f"another process stopped: {found}")
    return value


def wait() -> None:
    """Wait for the other processes."""
    state().wait_for_everyone()


def progress(items: Iterable, description: str, unit: str, **options: Any) -> tqdm:
    """A progress bar, on the main process alone; options are those of tqdm, such as how many items were done before."""
    return tqdm(items, desc=description, unit=unit, disable=not is_main(), **options)
