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
from ..timing.speedups import Speedup
from .cells import DENSE, EAGER, GRID, PRUNED, Cell, Form
from .table import table_of

SCHEMA = 1
"""Version of the form on disk."""


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
        how = f"{self.dtype}, {self.repeats} runs or more of each, in turn"
        return f"{self.machine}\n{how}\n\n{table_of(self.forms, self.cells)}"


def _cell(data: Mapping[str, Any]) -> Cell:
    ratios = {name: data.get(name) for name in ("speedup", "speedup_over_eager")}
    return Cell(**{**data, **{name: each and Speedup(**each) for name, each in ratios.items()}})
