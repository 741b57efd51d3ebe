"""A benchmark: a dense and a pruned model in several forms, made, checked, and timed in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..evaluation.latency import check_numbers, check_pair
from ..files.held import temporary_folder
from ..keeping.doors import keeping
from ..models.identity import device_of, dtype_of
from ..running.batch import Batch
from ..running.forward import run_model
from ..running.freezing import frozen
from ..stages.progress import progress
from ..timing.machine import cpus, this_machine
from ..timing.machine import threads as of_threads
from .batches import Work, collated, data_work, grid_work, made_up, with_padding
from .cells import DATA, DECODE, DENSE, GRID, PRUNED, Cell
from .decoding import check_room, decodes
from .making import Job, Made, make
from .results import Benchmark
from .turns import decoded_cells, timed_cells
from .variants import variants_named, without_fallback

_CHECKED = 8  # batches of the data set that outputs are compared on
_LEAST_NEW = 2  # tokens: the first belongs to the prompt


@keeping("dense", "pruned")
def run_benchmark(
    dense: nn.Module,
    pruned: nn.Module,
    *,
    tokens: int | Sequence[int],
    batch_size: int | Sequence[int] = 8,
    variants: Sequence[str] = ("eager",),
    repeats: int = 15,
    threads: int | None = None,
    new_tokens: int = 0,
    data: Any = None,
    processor: Any = None,
    num_samples: int = 256,
    text_columns: Sequence[str] | None = None,
) -> Benchmark:
    """Measure a dense and a pruned model side by side: speed, memory, size on disk and time to load.

    Every form of both models is saved, loaded from disk and compared with eager mode before anything is timed; a form
    whose outputs are not the model's is called wrong and not timed. All forms take turns on each batch, so that a
    drifting machine slows all alike, and all are in memory at the same time.

    Args:
        dense: the dense model.
        pruned: the pruned one, on the same device.
        tokens: length of samples, or several.
        batch_size: samples in a batch, or several; all are measured at all lengths.
        variants: forms beside eager mode: `"compile"`, `"onnx"`, `"onnx-int8"`, `"bf16"`.
        repeats: timed runs of each; cells that are still noisy have up to three times as many.
        threads: threads that a model may use; `None` takes PyTorch's.
        new_tokens: tokens to write after prompts of these lengths, of models that write text; 0 leaves decoding out.
        data: samples whose lengths are real, in whatever `OptinPruner.prune` takes; they are batched in a drawn order
            and padded to the longest of their batch. Outputs are compared on them, too, if there are any.
        processor: the models' tokenizer or the like, for raw data.
        num_samples: samples of the data at most.
        text_columns: one or two columns of the data that hold the text.

    Returns:
        What was measured: a table if printed, JSON by `to_dict` and `save`.

    Raises:
        ValueError: numbers that make no sense, models that are not to be compared, unusable data, more threads than the
            process has CPUs, or a variant that does not run here; raised before anything is measured.
        ImportError: names the packages that a variant needs.
    """
    lengths, sizes = _listed("tokens", tokens), _listed("batch_size", batch_size)
    check_numbers(repeats=repeats, num_samples=num_samples)
    for length in lengths:
        check_pair(dense, pruned, length)
    count = _thread_count(threads)
    chosen = variants_named(variants)
    for variant in chosen:
        variant.check(dense)
    device = device_of(dense)
    if device_of(pruned) != device:
        raise ValueError(f"the dense model is on {device}, the pruned one on {device_of(pruned)}: put both on one.")
    _check_new(dense, new_tokens, lengths)
    works = [grid_work(GRID, dense, size, length) for length in lengths for size in sizes]
    if data is not None:
        options = {"samples": num_samples, "text_columns": text_columns}
        for size in sizes:
            batches = collated(data, dense, processor, batch_size=size, **options)
            works.append(data_work(DATA, dense, batches, size))
    prompts = [grid_work(DECODE, dense, size, length) for length in lengths for size in sizes] if new_tokens else []
    checked_on, checks = _checks(works)
    off = torch.autocast(device.type, enabled=False)
    with of_threads(count), temporary_folder() as folder, off, without_fallback(chosen):
        machine = this_machine(device)
        _warm_up(dense, works)
        made: list[Made] = []
        pairs = [(variant, which) for variant in chosen for which in (DENSE, PRUNED)]
        job = Job(works, prompts, new_tokens, made_up(dense, 2, max(lengths)), count)
        for place, (variant, which) in enumerate(progress(pairs, "forms", "form")):
            here = folder / str(place)
            here.mkdir()
            model = dense if which == DENSE else pruned
            reference = next((each.runner for each in made if each.form.model == which), None)
            found = make(variant, which, model, here, job)
            made.append(found if reference is None else found.compared(reference, checks, checked_on))
        ready = [each for each in made if each.form.trouble is None]
        cells: list[Cell] = []
        for work in progress(works, "times", "cell"):
            cells += timed_cells(ready, work, repeats)
        for work in progress(prompts, "decoding", "cell") if prompts else ():
            cells += decoded_cells([each for each in ready if each.variant.generates], work, repeats, new_tokens)
    dtype = str(dtype_of(dense)).removeprefix("torch.")
    return Benchmark(machine=machine, dtype=dtype, repeats=repeats, forms=[each.form for each in made], cells=cells)


def _listed(name: str, values: int | Sequence[int]) -> list[int]:
    """One number or several, each once.

    Raises:
        ValueError: there is none, or one that is no whole number of at least 1.
    """
    listed = list(values) if isinstance(values, (list, tuple, range)) else [values]
    if not listed:
        raise ValueError(f"{name} must hold a number at least.")
    for value in listed:
        check_numbers(**{name: value})
    return list(dict.fromkeys(listed))


def _thread_count(threads: int | None) -> int:
    if threads is None:
        return torch.get_num_threads()
    check_numbers(threads=threads)
    if threads > cpus():
        raise ValueError(
            f"threads={threads} must be at most {cpus()}, the CPUs that this process may use: more would wait for each "
            "other, and the times would tell of that."
        )
    return threads


def _check_new(model: nn.Module, new_tokens: int, lengths: Sequence[int]) -> None:
    if new_tokens == 0:
        return
    check_numbers(new_tokens=new_tokens)
    if new_tokens < _LEAST_NEW:
        raise ValueError(f"new_tokens={new_tokens} must be at least {_LEAST_NEW}: the first one belongs to the prompt.")
    if not decodes(model):
        raise ValueError(
            f"new_tokens={new_tokens} is for models that write text, which {type(model).__name__} does not."
        )
    for length in lengths:
        check_room(model, length, new_tokens)


def _checks(works: Sequence[Work]) -> tuple[str, list[Batch]]:
    """What outputs are compared on: samples of the data set if there are any, else what is made up, padded and not."""
    real = [batch for work in works if work.kind == DATA for batch in work.batches]
    if real:
        return "samples of the data set", real[:: max(1, len(real) // _CHECKED)][:_CHECKED]
    batches = [batch for work in works for batch in work.batches]
    largest = max(batches, key=lambda batch: max(value.numel() for value in batch.values()))
    padded = with_padding(largest)
    return "made-up inputs", [*batches, *([] if padded is None else [padded])]


@torch.inference_mode()
def _warm_up(model: nn.Module, works: Sequence[Work]) -> None:
    """Run the model once on each kind of batch: what PyTorch sets up for itself then counts for no form."""
    with frozen(model):
        for work in works:
            run_model(model, work.batches[0])
