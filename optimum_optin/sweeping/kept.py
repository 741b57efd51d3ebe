"""Models of a sweep on their way: on disk rather than in memory, with what was measured of them."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..figures import Latency, Measurement
from ..files.folders import atomic_folder, write_file
from ..files.held import TEMPORARY, held_folder
from ..files.json_files import read_object
from ..publishing.writing import loaded_like, save_weights
from ..report import REPORT_FILE, PruningReport
from ..running.processes import first_of_all, is_main, together
from ..stages.work_folder import at, working_in

_TIMES = "times.json"  # which is no budget's name


class Kept:
    """Pruned models with their reports, and measurements, by the names of their budgets.

    Each is written completely or not at all, a measurement after the model that it is of. Of several processes, the
    main one reads and writes.

    Args:
        place: the folder.
        dense: the model that they are made from.
    """

    def __init__(self, place: Path, dense: nn.Module):
        self._place, self._dense = place, dense

    def save(self, name: str, model: nn.Module, report: PruningReport) -> None:
        """Write a model with its report."""
        with atomic_folder(self._folder(name)) as draft:
            save_weights(model, draft, self._dense)
            report.save(draft)

    def load(self, name: str) -> nn.Module:
        """The model as a user gets it, on the dense model's device."""
        return loaded_like(self._dense, self._folder(name))

    def report(self, name: str) -> PruningReport | None:
        """A model's report; `None` if there is no such model yet.

        Raises:
            ValueError: it is damaged; names the file.
        """
        return PruningReport.load(self._folder(name)) if (self._folder(name) / REPORT_FILE).is_file() else None

    def note_report(self, name: str, **changes: Any) -> None:
        """Change fields of a model's report."""
        replace(self.report(name), **changes).save(self._folder(name))

    def note(self, name: str, found: Measurement) -> None:
        """Write what was measured of a model."""
        content = {"metrics": metrics_of(found), "classes": dict(found.classes), "described": dict(found.described)}
        self._place.mkdir(parents=True, exist_ok=True)
        write_file(self._file(name), json.dumps(content, indent=2) + "\n")

    def noted(self, name: str) -> Measurement | None:
        """What was measured of a model; `None` if nothing was.

        Raises:
            ValueError: the file is damaged; names it.
        """
        file = self._file(name)
        if not file.is_file():
            return None
        try:
            content = read_object(file)
            metrics = {metric: (_number(each["value"]), each["error"]) for metric, each in content["metrics"].items()}
            return Measurement(metrics, content["classes"], described=content["described"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file} is damaged ({error!r}): delete it, and that model is measured again.") from error

    def note_times(self, times: Mapping[str, Latency]) -> None:
        """Write how fast models are, all of which were timed in one run."""
        content = {name: {**latency} for name, latency in times.items()}
        write_file(self._place / _TIMES, json.dumps(content, indent=2) + "\n")

    def times(self) -> dict[str, Latency]:
        """How fast models are, those of the last run that timed some.

        Raises:
            ValueError: the file is damaged; names it.
        """
        file = self._place / _TIMES
        if not file.is_file():
            return {}
        found = read_object(file)
        try:
            return {name: Latency.of(each) for name, each in found.items()}
        except TypeError as error:
            raise ValueError(f"{file} is damaged ({error}): delete it, and all models are timed again.") from error

    def _folder(self, name: str) -> Path:
        return self._place / name

    def _file(self, name: str) -> Path:
        return self._place / f"{name}.json"


def by_main(compute: Callable[[], Any]) -> Any:
    """What the main process computes, on every process; its errors, too."""
    return first_of_all(together(lambda: compute() if is_main() else None))


def metrics_of(found: Measurement) -> dict[str, dict[str, float | None]]:
    """The metrics of a measurement, as JSON has them: `None` for what is no finite number."""
    return {
        name: {"value": value if math.isfinite(value) else None, "error": error}
        for name, (value, error) in found.metrics.items()
    }


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


@contextmanager
def kept_in(
    work_dir: Path | None, beside: Path | None, dense: nn.Module, identity: Callable[[], Mapping[str, Any]]
) -> Iterator[Kept]:
    """Keep models in a work folder, or else in a temporary one, which is deleted in the end.

    Args:
        work_dir: the work folder; what is kept there goes into its `sweep`.
        beside: the folder to make a temporary one in; `None` for the system's.
        dense: the dense model.
        identity: all that the work depends on, see `stages.work_folder.working_in`.

    Raises:
        ValueError, BlockingIOError, OSError: see `working_in`.
    """
    if work_dir is not None:
        with working_in(work_dir / "sweep", identity()), at(None):
            yield Kept(work_dir / "sweep", dense)
        return
    with ExitStack() as stack:
        place = by_main(lambda: stack.enter_context(_temporary(beside)))
        yield Kept(place, dense)


@contextmanager
def _temporary(beside: Path | None) -> Iterator[Path]:
    made = beside is not None and not beside.exists()
    if made:
        beside.mkdir(parents=True)
    try:
        with held_folder(TEMPORARY, beside or tempfile.gettempdir()) as place:
            yield place
    finally:
        if made:
            with suppress(OSError):  # it holds what was saved
                beside.rmdir()
