"""The registry of scorers. A scorer is one function `(model, groups, calibration, config) -> terms`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..architectures.group import Groups
from ..config import OptinConfig
from ..passes.calibration import Calibration
from ..passes.starts import Start
from ..running.processes import add_up

Terms = dict[str, dict[str, Tensor]]
"""Term (`"trajectory"`, `"output"`) -> group key -> score per unit, shape (units,), 0 or more."""


@dataclass(frozen=True)
class Scored:
    """What a scorer may return instead of `Terms`, if its passes of the dense model also serve the refit.

    Args:
        terms: the scores.
        starts: what the dense model says about each batch, see `Calibration.starts`.
    """

    terms: Terms
    starts: Sequence[Start | None] | None = None


Scorer = Callable[[nn.Module, Groups, Calibration, OptinConfig], Terms | Scored]

_SCORERS: dict[str, Scorer] = {}


class Totals:
    """Scores that are added up, term by term, over batches, probes or groups; a loop over them can be resumed.

    Args:
        terms: what there is at first.
    """

    def __init__(self, terms: Terms | None = None):
        self.terms: Terms = terms or {}

    def add(self, term: str, key: str, values: Tensor) -> None:
        """Add to the scores of a group's units."""
        by_group = self.terms.setdefault(term, {})
        by_group[key] = by_group[key] + values if key in by_group else values.double()

    def tensors(self) -> dict[str, Tensor]:
        """The totals by name, for `restore`."""
        return flattened(self.terms)

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Hold the totals that `tensors` gave."""
        self.terms = terms_of(saved)

    def means(self, count: int) -> Terms:
        """The totals of all processes, added up and divided by `count`, on the CPU."""
        for by_group in self.terms.values():
            add_up(*by_group.values())
        return {
            term: {key: (total / count).cpu() for key, total in by_group.items()}
            for term, by_group in self.terms.items()
        }


def flattened(terms: Terms) -> dict[str, Tensor]:
    """Terms as tensors by name: `"output/layers.0.heads"`."""
    return {f"{term}/{key}": scores for term, by_group in terms.items() for key, scores in by_group.items()}


def terms_of(tensors: Mapping[str, Tensor]) -> Terms:
    """The terms that `flattened` gave names to, in their order."""
    terms: Terms = {}
    for name, scores in tensors.items():
        term, key = name.split("/", 1)
        terms.setdefault(term, {})[key] = scores
    return terms


def register_scorer(name: str) -> Callable[[Scorer], Scorer]:
    """Decorator that makes a function available as `OptinConfig(scorer=name)`.

    The function gets the model in evaluation mode without parameter gradients, its groups in order of execution, its
    calibration, which iterates over batches on the model's device, and the configuration. It returns `Terms`: the
    larger a score, the more the unit matters; a model without an output to compare has no `"output"` term. It may also
    return `Scored`. Our own scorers, which it may call, take lists of groups and of batches as well.
    """

    def register(scorer: Scorer) -> Scorer:
        _SCORERS[name] = scorer
        return scorer

    return register


def get_scorer(name: str) -> Scorer:
    """The scorer registered under `name`.

    Raises:
        ValueError: no such scorer; lists the known ones.
    """
    if name not in _SCORERS:
        raise ValueError(
            f"unknown scorer {name!r}; known: {', '.join(sorted(_SCORERS))}. "
            "Add your own with optimum_optin.register_scorer."
        )
    return _SCORERS[name]
