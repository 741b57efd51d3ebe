"""Entries of a report: a model's figures, the data it was pruned on, and the model it was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NUMBERS = ("perplexity",)
"""Metrics that are no shares."""


class _Record(Mapping):
    """A dataclass that also reads as the dict that it is on disk: `latency["speedup"]`, `**latency`, `== {...}`.

    A field at its default was not given, and is not among the keys.
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
        """A record made of a dict; a record or `None` is returned as it is.

        Raises:
            TypeError: `value` is no dict, or has a key that is no field.
        """
        return value if value is None or isinstance(value, cls) else cls(**value)

    def to_dict(self) -> dict:
        """The record as a dict that `json` can write."""
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
        held_out: whether these samples were kept from the refit.
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
class Continuations(_Record):
    """What a pruned language model writes after prompts, beside what the dense one writes; both greedily.

    Args:
        agreement: share of the tokens that the dense model writes which the pruned one would write as well, each after
            the dense model's text before it.
        log_likelihood: mean of log p under the dense model, in nats, of the tokens that the pruned one writes.
        dense_log_likelihood: that of the tokens that the dense model writes itself.
        prompts: how many prompts, which are the first tokens of calibration samples; or whole samples, for models whose
            decoder writes about what their encoder reads.
        tokens: how many tokens were written after each; for such models at most, as what they write comes to an end.
        held_out: whether these samples were kept from the refit.
        answers: whether it is a model with an encoder and a decoder.
    """

    agreement: float
    log_likelihood: float
    dense_log_likelihood: float
    prompts: int
    tokens: int
    held_out: bool
    answers: bool = False

    def __str__(self) -> str:
        kind = "held-out" if self.held_out else "calibration"
        of = f"for {self.prompts} {kind} inputs, at most" if self.answers else f"after {self.prompts} {kind} prompts,"
        return (
            f"text {of} {self.tokens} tokens each: {self.agreement:.1%} of the dense "
            f"model's tokens, log-likelihood under the dense model {self.log_likelihood:.2f} "
            f"(its own text: {self.dense_log_likelihood:.2f})"
        )


@dataclass(frozen=True, eq=False)
class Drop(_Record):
    """What a model lost at a budget that `prune(max_drop=...)` tried.

    Args:
        flops: the budget.
        drop: what the model lost there.
    """

    flops: float
    drop: float


@dataclass(frozen=True, eq=False)
class Drops(_Record):
    """What `prune(max_drop=...)` tried.

    Args:
        metric: in which metric a model was to lose no more.
        most: the most that it might lose.
        tried: what was tried, in order.
    """

    metric: str
    most: float
    tried: Sequence[Drop]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tried", [Drop.of(each) for each in self.tried])

    def __str__(self) -> str:
        tried = ", ".join(f"{each.drop:.4g} at {each.flops:.1%}" for each in self.tried)
        return f"{self.metric} was to drop by at most {self.most:.4g}; drop by budget tried: {tried}"


@dataclass(frozen=True, eq=False)
class MetricValues(_Record):
    """A metric of the dense and of the pruned model, each with its standard error over samples.

    Args:
        dense: the dense model's value, as a fraction (0.863 for 86.3 %) if the metric is none of `NUMBERS`.
        dense_error: standard error of `dense`.
        pruned: the pruned model's value, if it was measured.
        pruned_error: standard error of `pruned`.
    """

    dense: float | None = None
    dense_error: float | None = None
    pruned: float | None = None
    pruned_error: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation(_Record):
    """What a task's metrics say of the dense and of the pruned model, on the same samples.

    Args:
        task: e.g. `"glue/sst2"` or `"semantic-segmentation"`.
        dataset: its data set on the Hub, or the name of a folder.
        config: the data set's configuration, if it has several.
        split: the split that was measured on; `"all"` for data without splits.
        samples: how many samples of the split.
        metrics: metric -> its values.
        classes: class -> the value of the first metric for it, where a metric is a mean over classes.
        protocol: how it was measured, of tasks where that is not always the same.
    """

    task: str
    dataset: str
    config: str | None = ""  # `None` is a value
    split: str
    samples: int
    metrics: Mapping[str, MetricValues]
    classes: Mapping[str, MetricValues] | None = None
    protocol: str | None = None

    def __post_init__(self) -> None:
        for name in ("metrics", "classes"):
            if (values := getattr(self, name)) is not None:
                read = {each: MetricValues.of(value) for each, value in dict(values).items()}
                object.__setattr__(self, name, read)

    def __str__(self) -> str:
        how = "" if self.protocol is None else f" ({self.protocol})"
        what = f"{self.task}, {self.split}, {self.samples} samples{how}"
        lines = []
        for name, each in self.metrics.items():
            dense, pruned = shown(name, each.dense, each.dense_error), shown(name, each.pruned, each.pruned_error)
            lines.append(f"{what}: {name} {dense} -> {pruned}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Measurement:
    """What one model does on the samples of a task.

    Args:
        metrics: metric -> its value and its standard error, `None` where there is none.
        classes: class -> its part in the first metric; empty if that is no mean over classes.
        shown: what the model says of the first sample, for a picture; `None` where there is none to show.
        described: fields of the `Evaluation` that only measuring tells.
    """

    metrics: Mapping[str, tuple[float, float | None]]
    classes: Mapping[str, float] = field(default_factory=dict)
    shown: Any = None
    described: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Latency(_Record):
    """Wall-clock time of a forward pass of the dense and of the pruned model, side by side.

    Args:
        device: `"cpu"`, `"cuda"`, ...
        hardware: the device's name, as its maker gives it.
        threads: how many threads PyTorch uses.
        dtype: type of the weights, e.g. `"float32"`.
        batch_size: samples per pass.
        tokens: length of every sample.
        repeats: timed runs of each model.
        dense_ms: median time of the dense model, in milliseconds.
        pruned_ms: median time of the pruned model, in milliseconds.
        speedup: median of the ratios of neighbouring runs, dense / pruned.
        backend: what ran them: `"eager"`, PyTorch as it is, `"compile"`, or `"onnx"`, ONNX Runtime.
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
    backend: str = "eager"

    def __str__(self) -> str:
        backend = "" if self.backend == "eager" else f", {self.backend}"
        return (
            f"latency, {self.batch_size} x {self.tokens} tokens, {self.hardware}, {self.threads} threads, "
            f"{self.dtype}{backend}: {self.dense_ms:.1f} ms -> {self.pruned_ms:.1f} ms ({self.speedup:.2f}x the speed)"
        )


@dataclass(frozen=True, eq=False)
class CalibrationSource(_Record):
    """What a model was pruned on. Only `samples` is known of data that `get_calibration_dataset` did not draw.

    Args:
        samples: how many samples were used.
        dataset: data set on the Hub.
        config: the data set's configuration; `None` if none was named.
        split: the split that was drawn from.
        text_columns: the columns that the user chose.
        num_samples: how many samples were drawn.
        seed: the draw's seed.
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
        commit: hash of the commit; `None` if it is not known.
    """

    repo_id: str
    commit: str | None


def plain(value: Any) -> Any:
    """A copy of a value in plain dicts, without records."""
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, (list, tuple)) else value


def shown(metric: str, value: float | None, error: float | None) -> str:
    """A metric's value with its standard error, as people read it: of shares in percent, of `NUMBERS` as they are."""
    if value is None:
        return "-"
    scale, digits = (1, 2) if metric in NUMBERS else (100, 1)
    return " ± ".join(f"{scale * each:.{digits}f}" for each in (value, error) if each is not None)
