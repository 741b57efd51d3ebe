"""How many tokens to merge after each layer, and how many the next ones see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .merging import most_merges


@dataclass(frozen=True)
class TokenSchedule:
    """What is merged while an image passes through the layers.

    Args:
        protected: tokens at the beginning that are never merged: class, distillation, register tokens.
        merges: layer -> pairs of tokens to merge after it; after layers it does not name, none.

    Raises:
        ValueError: numbers that are no counts.
    """

    protected: int
    merges: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, count in {"protected": self.protected, **self.merges}.items():
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ValueError(f"token schedule: {name} must be a whole number of at least 0, got {count!r}.")

    def lengths(self, layers: Iterable[str], tokens: int) -> dict[str, int]:
        """Layer -> tokens that it sees.

        Of an image with fewer tokens than the schedule was made for, as many are merged as have a partner.

        Args:
            layers: in order of execution.
            tokens: of the first layer.
        """
        lengths = {}
        for layer in layers:
            lengths[layer] = tokens
            tokens -= min(self.merges.get(layer, 0), most_merges(tokens, self.protected))
        return lengths

    def check(self, layers: Iterable[str], tokens: int) -> None:
        """Raise if there is not so much to merge.

        Args:
            layers: of the model, in order of execution.
            tokens: of the first layer.

        Raises:
            ValueError: an unknown layer, the last one, or more merges than tokens have partners.
        """
        layers = list(layers)
        lengths = self.lengths(layers, tokens)
        for layer, merges in self.merges.items():
            if layer not in layers:
                raise ValueError(f"token schedule: {layer!r} is no layer of this model; it has {', '.join(layers)}.")
            if merges and layer == layers[-1]:
                raise ValueError(f"token schedule: {merges} merges after {layer}, the last layer, save nothing: use 0.")
            most = most_merges(lengths[layer], self.protected)
            if merges > most:
                raise ValueError(
                    f"token schedule: {merges} merges after {layer}, which has {lengths[layer]} tokens, "
                    f"{self.protected} of them protected: at most {most}, one of every two."
                )

    def to_json(self) -> dict:
        """JSON form: `{"protected": 1, "merges": {"layers.0": 8}}`."""
        return {"protected": self.protected, "merges": {layer: count for layer, count in self.merges.items() if count}}

    @classmethod
    def from_json(cls, data: Mapping) -> TokenSchedule:
        """Read the JSON form.

        Raises:
            ValueError: a damaged entry.
        """
        fits = isinstance(data, Mapping) and set(data) == {"protected", "merges"}
        if not fits or not isinstance(data["merges"], Mapping):
            raise ValueError(
                f'token schedule must look like {{"protected": 1, "merges": {{"layers.0": 8}}}}, got {data!r:.120}.'
            )
        return cls(data["protected"], dict(data["merges"]))


def constant_schedule(
    layers: Iterable[str], costs: Mapping[str, list[float]], tokens: int, protected: int, budget: float
) -> TokenSchedule | None:
    """The same number of merges after every layer, as few as fit the budget (ToMe); `None` if none do.

    Args:
        layers: in order of execution.
        costs: layer -> its cost with n tokens, `tokens` + 1 numbers.
        tokens: of the first layer.
        protected: see `TokenSchedule`.
        budget: the most that all layers may cost.
    """
    layers = list(layers)
    for merges in range(most_merges(tokens, protected) + 1):
        counts, left = {}, tokens
        for layer in layers[:-1]:
            counts[layer] = min(merges, most_merges(left, protected))
            left -= counts[layer]
        schedule = TokenSchedule(protected, counts)
        if _spent(schedule, layers, costs, tokens) <= budget:
            return schedule
    return None


def scored_schedule(
    layers: Iterable[str],
    costs: Mapping[str, list[float]],
    losses: Mapping[str, list[float]],
    tokens: int,
    protected: int,
    budget: float,
) -> TokenSchedule | None:
    """Merge where a pair loses least for what it saves, one by one, until the budget holds; `None` if it never does.

    Args:
        layers: in order of execution.
        costs: layer -> its cost with n tokens, `tokens` + 1 numbers.
        losses: layer -> what each further pair merged after it is expected to lose, never falling.
        tokens: of the first layer.
        protected: see `TokenSchedule`.
        budget: the most that all layers may cost.
    """
    layers = list(layers)
    counts = dict.fromkeys(layers[:-1], 0)
    schedule = TokenSchedule(protected, counts)
    while _spent(schedule, layers, costs, tokens) > budget:
        best, best_rate = None, float("inf")
        lengths = schedule.lengths(layers, tokens)
        saved = 0.0  # by one token less in all later layers
        for layer, later in zip(reversed(layers[:-1]), reversed(layers[1:]), strict=True):
            saved += costs[later][lengths[later]] - costs[later][lengths[later] - 1]
            further = losses[layer][counts[layer]] if counts[layer] < len(losses[layer]) else float("inf")
            if further / saved < best_rate and _possible({**counts, layer: counts[layer] + 1}, tokens, protected):
                best, best_rate = layer, further / saved
        if best is None:
            return None
        counts[best] += 1
        schedule = TokenSchedule(protected, dict(counts))
    return schedule


def _possible(counts: Mapping[str, int], tokens: int, protected: int) -> bool:
    for count in counts.values():
        if count > most_merges(tokens, protected):
            return False
        tokens -= count
    return True


def _spent(schedule: TokenSchedule, layers: list[str], costs: Mapping[str, list[float]], tokens: int) -> float:
    return sum(costs[layer][length] for layer, length in schedule.lengths(layers, tokens).items())
