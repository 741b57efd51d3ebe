"""Several processes on one calibration set: each works on its share of the batches, and sums are added up.

`accelerate launch` starts the processes; Accelerate's state knows them. Every process holds the whole model and the
whole list of batches, draws the same random numbers for a batch (`randomness.py`), and ends with the same result as a
single process, but for rounding. Alone, every function here does nothing.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env
from torch import Tensor

_PACKET = 2**17  # numbers that one message holds, if it has several tensors: to put them together takes copies


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


def fair_share(costs: Sequence[float]) -> list[int]:
    """Which of several pieces of work this process does, in order, so that all are busy about as long.

    Args:
        costs: what each piece costs, in any unit, the same on every process: the dearest are handed out first.
    """
    here = state()
    busy = [0.0] * here.num_processes
    mine = []
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        process = min(range(here.num_processes), key=busy.__getitem__)
        busy[process] += costs[index]
        if process == here.process_index:
            mine.append(index)
    return sorted(mine)


def my_part(count: int) -> slice:
    """Which of `count` rows that lie side by side this process works on."""
    here = state()
    first, last = (count * place // here.num_processes for place in (here.process_index, here.process_index + 1))
    return slice(first, last)


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
    """Add every process's tensors to those of the others, in place; returns nothing.

    What is small is sent together: a message costs as much as a hundred thousand numbers do.
    """
    if process_count() == 1:
        return
    for packet in _packets(tensors):
        if len(packet) == 1 and packet[0].is_contiguous():
            torch.distributed.all_reduce(packet[0])  # Accelerate's `reduce` would copy what may be large
            continue
        sent = torch.cat([tensor.reshape(-1) for tensor in packet])
        torch.distributed.all_reduce(sent)
        for tensor, part in zip(packet, sent.split([tensor.numel() for tensor in packet]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def everyones(value: float) -> list[float]:
    """Every process's number, in their order, the same on all of them."""
    if process_count() == 1:
        return [value]
    values = torch.zeros(process_count(), dtype=torch.float64, device=state().device)
    values[process_index()] = value
    add_up(values)
    return values.tolist()


def _packets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """The tensors in order, those together that can be sent in one message."""
    packet: list[Tensor] = []
    size = 0
    for tensor in tensors:
        alike = packet and (tensor.dtype, tensor.device) == (packet[0].dtype, packet[0].device)
        if packet and not (alike and size + tensor.numel() <= _PACKET):
            yield packet
            packet, size = [], 0
        packet.append(tensor)
        size += tensor.numel()
    if packet:
        yield packet


def on_main(compute: Callable[[], Any]) -> Any:
    """What the main process computes, on every process."""
    return broadcast_object_list([state().on_main_process(compute)()])[0]


def first_of_all(value: Any) -> Any:
    """The first process's value that is not `None`, on every process."""
    return next((each for each in gathered(value) if each is not None), None)


def gathered(value: Any) -> list[Any]:
    """Every process's value, in their order, on every process; tensors among them must be on the CPU."""
    return gather_object([value]) if process_count() > 1 else [value]


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
