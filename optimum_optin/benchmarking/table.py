"""The table of a benchmark, for people to read."""

from __future__ import annotations

from collections.abc import Sequence

from ..timing.speedups import FEWEST, NOISE, Speedup
from .cells import DATA, DECODE, GRID, PREFILL, Cell, Form

_TITLES = {
    GRID: "batches of samples of equal length",
    DATA: "the whole data set, in padded batches; times are of all of it",
    PREFILL: "reading prompts, until the first token is written",
    DECODE: "writing after them; times are of one token",
}


def table_of(forms: Sequence[Form], cells: Sequence[Cell]) -> str:
    """What was measured of each form, then a table for each kind of work."""
    parts = [_aligned(_FORMS, [_form_row(form) for form in forms])]
    for work, title in _TITLES.items():
        found = [each for each in cells if each.work == work]
        if found:
            shapes = dict.fromkeys((each.batch_size, each.tokens) for each in found)
            rows = [_cell_row(each) for shape in shapes for each in found if (each.batch_size, each.tokens) == shape]
            about = f", {found[0].samples} samples; padding: {_paddings(found)}" if work == DATA else ""
            parts.append(f"{title}{about}\n{_aligned(_CELLS, rows)}")
    ratios = [each for cell in cells for each in (cell.speedup, cell.speedup_over_eager)]
    if any(each is not None and each.noise is not None for each in ratios):
        parts.append(
            f"NOISY: fewer than {FEWEST} runs, or the median ratio is not known to ± {NOISE:.0%}: it says nothing. "
            "Take a machine that does nothing else, more repeats, or larger batches."
        )
    return "\n\n".join(parts)


_FORMS = ("variant", "model", "on disk", "prepare", "load", "outputs against eager mode")
_CELLS = (
    *("batch", "tokens", "variant", "model", "p50 ms", "p95 ms", "samples/s", "tokens/s", "peak"),
    *("x dense", "x dense eager"),
)


def _form_row(form: Form) -> list[str]:
    said = "itself"
    if form.trouble is not None:
        said = form.trouble
    elif form.distance is not None:
        agreed = "" if form.agreement is None else f", the same class for {form.agreement:.1%}"
        said = f"distance {form.distance:.1e}{agreed} ({form.checked_on})"
    seconds = [_or_dash(each, "{:.2f} s") for each in (form.prepare_seconds, form.load_seconds)]
    return [form.variant, form.model, _or_dash(form.bytes_on_disk, "{:.1f} MB", 1e-6), *seconds, said]


def _cell_row(cell: Cell) -> list[str]:
    return [
        str(cell.batch_size),
        f"{cell.tokens:.4g}" if cell.new_tokens is None else f"{cell.tokens:.4g} + {cell.new_tokens}",
        cell.variant,
        cell.model,
        f"{cell.p50_ms:.2f}",
        f"{cell.p95_ms:.2f}",
        f"{cell.samples_per_second:.4g}",
        f"{cell.tokens_per_second:.4g}",
        _or_dash(cell.peak_bytes, "{:.0f} MB", 1e-6),
        _ratio(cell.speedup),
        _ratio(cell.speedup_over_eager),
    ]


def _paddings(cells: Sequence[Cell]) -> str:
    shares = {cell.batch_size: cell.padding for cell in cells}
    return ", ".join(f"{share:.0%} in batches of {size}" for size, share in shares.items())


def _ratio(speedup: Speedup | None) -> str:
    if speedup is None:
        return "-"
    return f"{speedup}{'' if speedup.noise is None else ' NOISY'}"


def _or_dash(value: float | None, form: str, unit: float = 1.0) -> str:
    return "-" if value is None else form.format(value * unit)


def _aligned(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; all but the last are as wide as their widest cell."""
    widths = [max(len(row[place]) for row in (heading, *rows)) for place in range(len(heading))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (heading, *rows))
    return "\n".join(line.rstrip() for line in lines)
