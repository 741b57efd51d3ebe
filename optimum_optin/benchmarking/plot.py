"""The picture of a benchmark: how many times as fast every form is as the dense model in eager mode, with bounds."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .cells import DATA, DECODE, DENSE, EAGER, GRID, PREFILL, Cell
from .results import Benchmark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {GRID: "batches of one length", DATA: "data set, padded", PREFILL: "reading prompts", DECODE: "writing"}
_WIDTH, _HEIGHT = 1.1, 4.0  # inches for each group of bars, and of the picture
_LEAST = 4.0  # inches
_FORMATS = (".png", ".svg", ".pdf", ".jpg")


def check_plot(path: str | os.PathLike) -> None:
    """Raise if a picture cannot be written there.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the file's ending names no picture.
    """
    if find_spec("matplotlib") is None:
        raise ImportError("a plot needs matplotlib: pip install 'optimum-optin[plots]'.")
    if Path(path).suffix.lower() not in _FORMATS:
        raise ValueError(f"a plot must be a file such as plot.png, with one of {', '.join(_FORMATS)}, got {path}.")


def save_plot(benchmark: Benchmark, path: str | os.PathLike) -> None:
    """Write bars of the speedups over the dense model in eager mode, one picture for each kind of work.

    What is noisy is pale; forms that are wrong or failed have no bar, and the legend says so.

    Args:
        benchmark: what was measured.
        path: the file; its ending says in what form.

    Raises:
        ImportError, ValueError: see `check_plot`.
    """
    check_plot(path)
    from matplotlib.figure import Figure  # slow to import

    works = [work for work in _TITLES if any(cell.work == work for cell in benchmark.cells)]
    widths = [max(_LEAST, _WIDTH * len(_shapes(benchmark, work))) for work in works]
    figure = Figure(figsize=(sum(widths), _HEIGHT), layout="constrained")
    axes = figure.subplots(1, len(works), width_ratios=widths, squeeze=False)[0]
    for work, axis in zip(works, axes, strict=True):
        _draw(axis, benchmark, work)
    axes[0].set_ylabel("times as fast as dense, eager")
    axes[-1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    machine = benchmark.machine
    figure.suptitle(f"{machine.hardware}, {machine.threads} threads, {benchmark.dtype}", fontsize="medium")
    figure.savefig(path)


def _draw(axis: Axes, benchmark: Benchmark, work: str) -> None:
    shapes = _shapes(benchmark, work)
    forms = [form for form in benchmark.forms if (form.model, form.variant) != (DENSE, EAGER)]
    width = 0.8 / max(1, len(forms))
    for place, form in enumerate(forms):
        said = f"{form.model}, {form.variant}"
        trouble = None if form.trouble is None else form.trouble.partition(":")[0].lower()
        color = f"C{place}"
        axis.bar([], [], color=color, label=said if trouble is None else f"{said} ({trouble})")
        for cell in benchmark.cells:
            found = cell.speedup_over_eager
            if (cell.work, cell.model, cell.variant) != (work, form.model, form.variant) or found is None:
                continue
            at = shapes.index(_shape(cell)) + (place - (len(forms) - 1) / 2) * width
            bounds = [[found.median - found.low], [found.high - found.median]]
            pale = 1.0 if found.noise is None else 0.3
            axis.bar(at, found.median, width, yerr=bounds, color=color, alpha=pale, capsize=2)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xticks(range(len(shapes)), [f"{size} x {tokens:.4g}" for size, tokens in shapes])
    axis.set_xlabel("batch x tokens")
    axis.set_title(_TITLES[work], fontsize="medium")


def _shapes(benchmark: Benchmark, work: str) -> list[tuple[int, float]]:
    return list(dict.fromkeys(_shape(cell) for cell in benchmark.cells if cell.work == work))


def _shape(cell: Cell) -> tuple[int, float]:
    return cell.batch_size, cell.tokens
