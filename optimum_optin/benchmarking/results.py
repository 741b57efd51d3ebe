"""Results of a benchmark, as they go to disk: one schema with a version."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..annotated import check_fields
from ..figures import Latency
from ..files.folders import write_file
from ..files.json_files import read_object
from ..timing.machine import Machine
from .speedups import Speedup
from .table import table_of

SCHEMA = 1
"""Version of the form on disk."""

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
        tokens: tokens of a sample, of data their mean without padding; of `"decode"`, those that are written.
        samples: samples in all batches.
        padding: share of the tokens in the batches that are padding.
        runs: how many runs were timed.
        p50_ms: median time of a batch; of `"data"`, of all batches, of `"decode"`, of a token.
        p95_ms: time that one in twenty of these takes longer than.
        samples_per_second: throughput at the median.
        tokens_per_second: the same in tokens, padding not counted.
        peak_bytes: the most memory that the form holds, its weights included, beside what was there before it was
            loaded; `None` where nobody tells.
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
    speedup: Speedup | None = None
    speedup_over_eager: Speedup | None = None
    noise: str | None = None


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A dense and a pruned model, measured side by side in one process.

    Args:
        machine: what it ran on.
        dtype: type of the models' weights, e.g. `"float32"`.
        repeats: runs of each in a cell; noisy cells have more.
        forms: what was measured.
        cells: what was found.
        schema: version of the form on disk.
    """

    machine: Machine
    dtype: str
    repeats: int
    forms: list[Form] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    schema: int = SCHEMA

    @property
    def latency(self) -> Latency:
        """The entry of a report: the first batch of the grid, in eager mode."""
        dense, pruned = (
            next(each for each in self.cells if (each.work, each.model, each.variant) == (GRID, model, EAGER))
            for model in (DENSE, PRUNED)
        )
        return Latency(
            device=self.machine.device,
            hardware=self.machine.hardware,
            threads=self.machine.threads,
            dtype=self.dtype,
            batch_size=dense.batch_size,
            tokens=int(dense.tokens),
            repeats=dense.runs,
            dense_ms=dense.p50_ms,
            pruned_ms=pruned.p50_ms,
            speedup=pruned.speedup.median,
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields, as a dict that `json` can write."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Benchmark:
        """The benchmark that `to_dict` gave.

        Raises:
            ValueError: it is of another version, or damaged; says where.
        """
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema != SCHEMA:
            raise ValueError(
                f"schema={schema!r:.40} of a benchmark must be {SCHEMA}: read it with the version that wrote it."
            )
        try:
            found = cls(
                **{
                    **data,
                    "machine": Machine(**data["machine"]),
                    "forms": [Form(**each) for each in data["forms"]],
                    "cells": [_cell(each) for each in data["cells"]],
                }
            )
            check_fields(found)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"the benchmark is damaged: {error}.") from error
        return found

    def save(self, path: str | os.PathLike) -> None:
        """Write it as JSON, completely or not at all."""
        write_file(Path(path), json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> Benchmark:
        """The benchmark in a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: see `from_dict`; names the file.
        """
        try:
            return cls.from_dict(read_object(Path(path)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def __str__(self) -> str:
        return f"{self.machine}\n{self.dtype}, medians of {self.repeats} runs or more in turn\n\n{table_of(self)}"


def _cell(data: Mapping[str, Any]) -> Cell:
    ratios = {name: data.get(name) for name in ("speedup", "speedup_over_eager")}
    return Cell(**{**data, **{name: each and Speedup(**each) for name, each in ratios.items()}})
