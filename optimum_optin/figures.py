"""What a report holds of a model: its figures, what it was pruned on, and what it was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


class _Record(Mapping):
    """A dataclass that also reads as the dict that it is on disk: `latency["speedup"]`, `**latency`, `== {...}`.

    Fields at their defaults were not given, and are not among its keys.
    """

    def __getitem__(self, name: str) -> Any:
        if name not in iter(self):
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return (each.name for each in dataclasses.fields(self) if getattr(self, each.name) != each.default)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __or__(self, other: Mapping) -> dict:
        return {**self, **other}

    def __ror__(self, other: Mapping) -> dict:
        return {**other, **self}

    def copy(self) -> dict:
        """See `to_dict`."""
        return self.to_dict()

    @classmethod
    def of(cls, value: Mapping | None):
        """The record that a dict holds; a record, and `None`, as they are.

        Raises:
            TypeError: it is no dict, or has other keys.
        """
        return value if value is None or isinstance(value, cls) else cls(**value)

    def to_dict(self) -> dict:
        """Its keys and values, JSON-able."""
        return plain(self)


@dataclass(frozen=True, eq=False)
class Divergence(_Record):
    """Distance of two models' outputs.

    Args:
        distance: L_KD, mean over outputs: KL divergence in nats for a classifier, squared error for numbers and
            hidden states.
        agreement: share of outputs with the same class; for numbers and hidden states the share of the dense
            model's variance that the pruned one explains, at least 0. `None` where there is no variance to explain.
        samples: how many samples it was measured on.
        held_out: whether the refit was kept from seeing them.
    """

    distance: float
    agreement: float | None
    samples: int
    held_out: bool

    def __str__(self) -> str:
        kind = "held-out" if self.held_out else "calibration"
        agreed = "" if self.agreement is None else f", agreement {self.agreement:.1%}"
        return (
            f"outputs against the dense model's, {self.samples} {kind} samples: divergence {self.distance:.4g}{agreed}"
        )


@dataclass(frozen=True, eq=False)
class MetricValues(_Record):
    """A metric of the dense and of the pruned model, each with its standard error over samples.

    Args:
        dense: of the dense model.
        dense_error: its standard error.
        pruned: of the pruned model, if it was measured.
        pruned_error: its standard error.
    """

    dense: float | None = None
    dense_error: float | None = None
    pruned: float | None = None
    pruned_error: float | None = None

    def __str__(self) -> str:
        return f"{_percent(self.dense, self.dense_error)} -> {_percent(self.pruned, self.pruned_error)}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation(_Record):
    """What a task's metrics say of the dense and of the pruned model, on the same samples.

    Args:
        task: e.g. `"glue/sst2"`.
        dataset: its data set on the Hub.
        config: the data set's configuration, if it has several.
        split: the split measured on.
        samples: how many samples of it.
        metrics: metric -> its values.
    """

    task: str
    dataset: str
    config: str | None = ""  # `None` is a value
    split: str
    samples: int
    metrics: Mapping[str, MetricValues]

    def __post_init__(self) -> None:
        metrics = {name: MetricValues.of(values) for name, values in dict(self.metrics).items()}
        object.__setattr__(self, "metrics", metrics)

    def __str__(self) -> str:
        what = f"{self.task}, {self.split}, {self.samples} samples"
        return "\n".join(f"{what}: {name} {values}" for name, values in self.metrics.items())


@dataclass(frozen=True, eq=False)
class Latency(_Record):
    """Wall-clock time of a forward pass of the dense and of the pruned model, side by side.

    Args:
        device: `"cpu"`, `"cuda"`, ...
        hardware: what its maker calls it.
        threads: of PyTorch.
        dtype: of the weights.
        batch_size: samples per pass.
        tokens: length of every sample.
        repeats: counted runs of each.
        dense_ms: median of the dense model.
        pruned_ms: median of the pruned model.
        speedup: median of the ratios of neighbouring runs, dense / pruned.
    """

    device: str
    hardware: str
    threads: int
    dtype: str
    batch_size: int
    tokens: int
    repeats: int
    dense_ms: float
    pruned_ms: float
    speedup: float

    def __str__(self) -> str:
        return (
            f"latency, {self.batch_size} x {self.tokens} tokens, {self.hardware}, {self.threads} threads, "
            f"{self.dtype}: {self.dense_ms:.1f} ms -> {self.pruned_ms:.1f} ms ({self.speedup:.2f}x the speed)"
        )


@dataclass(frozen=True, eq=False)
class CalibrationSource(_Record):
    """What a model was pruned on. Only `samples` is known of data that `get_calibration_dataset` did not draw.

    Args:
        samples: how many samples were used.
        dataset: data set on the Hub.
        config: its configuration; `None` takes its only one.
        split: its split.
        text_columns: the columns that were chosen.
        num_samples: how many samples were drawn.
        seed: seed of the draw.
    """

    samples: int
    dataset: str | None = None
    config: str | None = ""  # `None` is a value
    split: str | None = None
    text_columns: list[str] | None = None
    num_samples: int | None = None
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class HubModel(_Record):
    """A model on the Hub.

    Args:
        repo_id: its repository.
        commit: the commit; `None` if it is not known.
    """

    repo_id: str
    commit: str | None


def plain(value: Any) -> Any:
    """The same in dicts of its own, without records."""
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, (list, tuple)) else value


def _percent(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if error is None else f"{100 * value:.1f} ± {100 * error:.1f}"
