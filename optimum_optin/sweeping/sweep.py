"""`Sweep`: what came of pruning one model to many budgets, as a table, as JSON, and as a picture."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..annotated import check_fields
from ..config import OptinConfig, current_fields
from ..figures import plain
from ..figures import shown as figure_shown
from ..files.folders import check_folder, write_file
from ..files.json_files import read_object
from ..files.model_files import SWEEP
from ..report import check_listed
from .budgets import with_budget
from .picture import NotInstalledError, Panel, Picture, drawn, png
from .points import DENSE, SweepPoint, Timing
from .yardsticks import Scale, check_drop

logger = logging.get_logger(__name__)

SWEEP_FILE = "optin_sweep.json"

_SIZES = ("macs", "milliseconds", "params", "bytes")  # by which a model may be the smallest
_MOST_POINTS = 10_000


@dataclass(frozen=True)
class Sweep:
    """One model pruned to many budgets, each measured and timed against the dense one.

    Args:
        dense: the dense model.
        points: the pruned models, in the order of their budgets.
        metric: the metric that counts, see `SweepPoint.metrics`.
        lower: whether a model is the better, the lower its value.
        relative: whether a loss is counted as a share of the dense model's value.
        task: what was measured on: fields of an `Evaluation` but its metrics; empty for calibration samples and
            functions.
        tokens: length of the samples that MACs are counted for.
        timing: how the models were timed; `None` if they were not.
        config: the `OptinConfig` without budgets, as a dict.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from optimum_optin import OptinConfig, OptinPruner
        >>> shape = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        ...                    intermediate_size=64)
        >>> pruner = OptinPruner(BertModel(shape))
        >>> calibration = [{"input_ids": list(range(5, 17))} for _ in range(16)]
        >>> sweep = pruner.sweep(calibration, [0.8, 0.5], OptinConfig(probes=8), evaluate="divergence", repeats=0)
        >>> [point.name for point in sweep.points]
        ['flops-0.8', 'flops-0.5']
    """

    dense: SweepPoint
    points: Sequence[SweepPoint]
    metric: str
    lower: bool
    relative: bool
    task: dict[str, Any]
    tokens: int
    timing: Timing | None
    config: dict[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple(self.points))

    def value(self, point: SweepPoint) -> float:
        """What a model has in the metric that counts; NaN where that is no finite number."""
        value = point.metrics[self.metric]["value"]
        return math.nan if value is None else value

    def drop(self, point: SweepPoint) -> float:
        """What a model has lost in it."""
        return Scale(self.metric, self.lower, self.relative).drop(self.value(self.dense), self.value(point))

    def smallest(self, max_drop: float, by: str = "macs") -> SweepPoint:
        """The smallest model that loses no more than it may.

        Args:
            max_drop: the most that it may lose in the metric that counts, see `OptinPruner.prune`.
            by: what is to be small: `"macs"`, `"milliseconds"`, `"params"` or `"bytes"`.

        Raises:
            ValueError: no budget loses so little; says which loses least. Or the models were not timed.
        """
        check_drop(max_drop)
        if by not in _SIZES:
            raise ValueError(f"by={by!r} must be one of {', '.join(_SIZES)}.")
        if by == "milliseconds" and self.timing is None:
            raise ValueError("by='milliseconds' needs models that were timed: sweep with repeats=15.")
        held = [point for point in self.points if self.drop(point) <= max_drop]
        if not held:
            least = min(self.points, key=lambda point: (math.isnan(self.drop(point)), self.drop(point)))
            raise ValueError(
                f"max_drop={max_drop:.4g} is met by no budget of the sweep: {self.metric} drops by "
                f"{self.drop(least):.4g} at {least.name}, which loses least. Allow more, or sweep larger budgets."
            )
        return min(held, key=lambda point: getattr(point, by))

    def config_of(self, point: SweepPoint) -> OptinConfig:
        """The configuration that makes a model of the sweep again, by `prune` with the same data and scores."""
        return with_budget(OptinConfig.from_dict(self.config), point.budget)

    def plot(self) -> Any:
        """The picture as a `matplotlib.figure.Figure`: quality against time, MACs and size, and what each layer keeps.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return drawn(self._picture())

    def picture(self) -> bytes:
        """The picture as the content of a PNG file.

        Raises:
            ImportError: see `plot`.
        """
        return png(self._picture())

    def pictures(self) -> dict[str, bytes]:
        """The picture by the name of its file; nothing, with a word, if matplotlib is not installed."""
        try:
            return {SWEEP: self.picture()}
        except NotInstalledError as error:
            logger.warning_once(f"no {SWEEP} is written: {error}")
            return {}

    def save(self, folder: str | os.PathLike, pictures: Mapping[str, bytes] | None = None) -> None:
        """Write `optin_sweep.json` and, if matplotlib is installed, `optin_sweep.png` into a folder.

        Args:
            folder: the folder, made if missing.
            pictures: those of `pictures`, if they were drawn before; `None` draws them.

        Raises:
            NotADirectoryError, PermissionError, FileExistsError, OSError: see
                `optimum_optin.files.folders.check_folder`.
        """
        path = check_folder(folder, (SWEEP_FILE, SWEEP))
        path.mkdir(parents=True, exist_ok=True)
        inside = [_moved(point, lambda place: os.path.relpath(place, path)) for point in self.points]
        content = {**self.to_dict(), "points": [point.to_dict() for point in inside]}
        write_file(path / SWEEP_FILE, json.dumps(content, indent=2) + "\n")
        for name, content in (self.pictures() if pictures is None else pictures).items():
            write_file(path / name, content)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Sweep:
        """Read `optin_sweep.json` from a folder.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is damaged, or of a newer version; names the file.
        """
        file = Path(folder) / SWEEP_FILE
        fields = read_object(file)
        try:
            sweep = cls.from_dict(fields)
            points = [_moved(point, lambda place: str(file.parent.resolve() / place)) for point in sweep.points]
            return dataclasses.replace(sweep, points=points)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file} is damaged, or of a newer version of optimum-optin: {error}.") from error

    def to_dict(self) -> dict:
        """All fields, as a dict that `json` can write."""
        return {
            **plain(vars(self)),
            "dense": self.dense.to_dict(),
            "points": [point.to_dict() for point in self.points],
            "timing": self.timing and dataclasses.asdict(self.timing),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sweep:
        """The sweep that `to_dict` gave.

        Raises:
            ValueError, TypeError, KeyError: it is none.
        """
        timing = data["timing"]
        sweep = cls(
            **{
                **data,
                "dense": SweepPoint(**data["dense"]),
                "points": [SweepPoint(**point) for point in data["points"]],
                "timing": timing if timing is None else Timing(**timing),
                "config": current_fields(data["config"]),
            }
        )
        _check(sweep)
        return sweep

    def __str__(self) -> str:
        on = ", ".join(str(self.task[name]) for name in ("task", "split", "samples", "protocol") if name in self.task)
        lines = [
            f"{self.metric}{f' of {on} samples' if on else ''}; MACs at {self.tokens} tokens",
            *([f"time: {self.timing}"] if self.timing else []),
        ]
        return "\n".join([*lines, *_columns([_HEADING, *(self._row(point) for point in (self.dense, *self.points))])])

    def _row(self, point: SweepPoint) -> list[str]:
        figures = point.metrics[self.metric]
        value, known = figures["value"], bool(self.task) or self.metric == "agreement"  # not a function's, say
        shown = figure_shown(self.metric, value, figures["error"]) if known else f"{self.value(point):.4g}"
        times = ["-", "-"]
        if point.milliseconds is not None:
            times = [f"{point.milliseconds:.1f} ms", f"{point.speedup:.2f}x"]
        shares = [point.macs / self.dense.macs, point.params / self.dense.params]
        return [
            " ".join(f"{name}={each}" for name, each in point.budget.items()) or DENSE,
            shown,
            f"{self.drop(point):.3g}",
            *times,
            f"{point.macs / 1e6:,.1f}M ({shares[0]:.0%})",
            f"{point.params / 1e6:,.2f}M ({shares[1]:.0%})",
            f"{point.bytes / 1e6:,.1f} MB",
        ]

    def _picture(self) -> Picture:
        points = [self.dense, *self.points]
        values = [(self.value(point), point.metrics[self.metric]["error"]) for point in points]
        sizes = [
            Panel("MACs, millions", [point.macs / 1e6 for point in points]),
            Panel("MB", [point.bytes / 1e6 for point in points]),
        ]
        if self.timing is not None:
            # By the ratios, which a busy machine disturbs less than the times.
            title = f"ms (dense / speed), {self.timing.batch_size} x {self.timing.tokens} tokens"
            sizes = [Panel(title, [self.dense.milliseconds / point.speedup for point in points]), *sizes]
        return Picture(
            self.metric,
            values,
            sizes,
            names=[point.name for point in self.points],
            kept=[point.layers for point in self.points],
            dense=self.dense.layers,
        )


_HEADING = ["budget", "value", "drop", "time", "speed", "MACs", "parameters", "size"]


def _moved(point: SweepPoint, move: Callable[[str], str]) -> SweepPoint:
    """A point whose model's place is told from another: in a file, from that file, as folders are moved as a whole."""
    return point if point.folder is None else dataclasses.replace(point, folder=move(point.folder))


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _check(sweep: Sweep) -> None:
    """Raise if a sweep that was read is none that we write, or would take tables of any size.

    Raises:
        ValueError: names the first such field.
    """
    check_fields(sweep)
    points = [sweep.dense, *sweep.points]
    if len(points) > _MOST_POINTS:
        raise ValueError(f"{len(points)} points are more than any sweep has")
    for point in points:
        if sweep.metric not in point.metrics or {*point.metrics[sweep.metric]} != {"value", "error"}:
            raise ValueError(f"{point.name!r:.80} has no value of {sweep.metric!r:.80}")
        if min(point.macs, point.params, point.bytes) < 0 or (sweep.timing and not point.speedup):
            raise ValueError(f"{point.name!r:.80} has no size or time")
        if not all(0 <= each["kept"] <= each["units"] for roles in point.layers.values() for each in roles.values()):
            raise ValueError(f"{point.name!r:.80} keeps more units than there are")
        check_listed(point.layers)
    if math.isnan(sweep.value(sweep.dense)):
        raise ValueError(f"the dense model has no value of {sweep.metric!r:.80}")
    if not sweep.dense.macs or not sweep.dense.params:
        raise ValueError("the dense model has no size")
    for point in sweep.points:
        sweep.config_of(point)
