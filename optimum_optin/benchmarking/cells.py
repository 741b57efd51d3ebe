"""Forms and cells: what a benchmark says of a model in one form, and of that form on one kind of batch."""

from __future__ import annotations

from dataclasses import dataclass

from ..timing.speedups import Speedup

DENSE, PRUNED = "dense", "pruned"
EAGER = "eager"
GRID, DATA, PREFILL, DECODE = "grid", "data", "prefill", "decode"


@dataclass(frozen=True, kw_only=True)
class Form:
    """A model in one form, such as the pruned one in ONNX Runtime.

    Args:
        model: `"dense"` or `"pruned"`.
        variant: `"eager"` or another key of `VARIANTS`.
        bytes_on_disk: what the weights, or the graph with them, take on disk.
        prepare_seconds: time to make it, once: to export, quantize or compile.
        load_seconds: median time to load it from disk, which has it in memory already; `None` for modules that only
            their own code makes.
        distance: distance of its outputs from those of the same model in eager mode, as a share of what these are;
            `None` for eager mode, and where they are not finite.
        agreement: share of samples, or tokens, for which it names the same class; `None` where there are none.
        checked_on: what it was compared on.
        wrong: why its outputs are no longer the model's; then it is not timed. `None` if they are.
        failed: why it could not be made or run; then it is not timed. `None` if it could.
    """

    model: str
    variant: str
    bytes_on_disk: int | None = None
    prepare_seconds: float | None = None
    load_seconds: float | None = None
    distance: float | None = None
    agreement: float | None = None
    checked_on: str | None = None
    wrong: str | None = None
    failed: str | None = None

    @property
    def trouble(self) -> str | None:
        """Why it is not timed, `None` if it is."""
        if self.wrong is not None:
            return f"WRONG: {self.wrong}"
        return None if self.failed is None else f"FAILED: {self.failed}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Times of one form on one kind of batch.

    Args:
        work: `"grid"` for batches of equal samples, `"data"` for all batches of a data set, `"prefill"` and `"decode"`
            for reading a prompt and writing after it.
        model: `"dense"` or `"pruned"`.
        variant: see `Form`.
        batch_size: samples in a batch.
        tokens: tokens of a sample, of data their mean without padding; of `"decode"`, those of the prompt.
        samples: samples in all batches.
        padding: share of the tokens in the batches that are padding.
        runs: how many runs were timed.
        p50_ms: median time of a batch; of `"data"`, of all batches, of `"decode"`, of a token.
        p95_ms: time that one in twenty of these takes longer than.
        samples_per_second: throughput at the median.
        tokens_per_second: the same in tokens, padding not counted.
        peak_bytes: the most memory that the form holds, its weights included, beside what was there before it was
            loaded; `None` where nobody tells.
        new_tokens: tokens that are written after each sample; `None` of other work than `"decode"`.
        speedup: how many times as fast it is as the dense model in the same variant; `None` for the dense model, and
            where that one is wrong or failed.
        speedup_over_eager: the same, over the dense model in eager mode.
        noise: why its speedup says nothing; `None` if it does.
    """

    work: str
    model: str
    variant: str
    batch_size: int
    tokens: float
    samples: int
    padding: float
    runs: int
    p50_ms: float
    p95_ms: float
    samples_per_second: float
    tokens_per_second: float
    peak_bytes: int | None = None
    new_tokens: int | None = None
    speedup: Speedup | None = None
    speedup_over_eager: Speedup | None = None
    noise: str | None = None
