"""How many tokens to merge after each layer, and how many the next ones see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from .matching import most_merges


@dataclass(frozen=True)
class TokenSchedule:
    """How many pairs of tokens are merged while an image passes through the layers.

    Args:
        protected: tokens at the beginning that are never merged: class, distillation, register tokens.
        merges: layer -> pairs of tokens to merge after it; 0 for layers that are not named.
        differences: whether a token comes back with what set it apart when it was merged; otherwise, as in folders that
            do not say so, it comes back as a copy of what it was merged into.

    Raises:
        ValueError: a number that is no count.
    """

    protected: int
    merges: Mapping[str, int] = field(default_factory=dict)
    differences: bool = True

    def __post_init__(self) -> None:
        for name, count in {"protected": self.protected, **self.merges}.items():
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ValueError(f"token schedule: {name} must be a whole number of at least 0, got {count!r}.")

    def lengths(self, layers: Iterable[str], tokens: int) -> dict[str, int]:
        """Layer -> tokens that it sees.

        If an image has fewer tokens than the schedule was made for, as many are merged as have a partner.

        Args:
            layers: the layers in order of execution.
            tokens: tokens that the first layer sees.
        """
        lengths = {}
        for layer in layers:
            lengths[layer] = tokens
            tokens -= min(self.merges.get(layer, 0), most_merges(tokens, self.protected))
        return lengths

    def check(self, layers: Iterable[str], tokens: int) -> None:
        """Raise if a model does not have so many tokens to merge.

        Args:
            layers: its layers in order of execution.
            tokens: tokens that the first layer sees.

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
        """JSON form: `{"protected": 1, "merges": {"layers.0": 8}, "differences": true}`."""
        merges = {layer: count for layer, count in self.merges.items() if count}
        form = {"protected": self.protected, "merges": merges}
        return form | {"differences": True} if self.differences else form

    @classmethod
    def from_json(cls, data: Mapping) -> TokenSchedule:
        """Read the JSON form.

        Raises:
            ValueError: a damaged entry.
        """
        fits = isinstance(data, Mapping) and set(data) - {"differences"} == {"protected", "merges"}
        if not fits or not isinstance(data["merges"], Mapping) or data.get("differences", True) is not True:
            raise ValueError(
                'token schedule must look like {"protected": 1, "merges": {"layers.0": 8}, "differences": true}, got '
                f"{data!r:.120}."
            )
        return cls(data["protected"], dict(data["merges"]), "differences" in data)


@dataclass(frozen=True)
class TokenCosts:
    """What a model costs by the number of its tokens, in MACs, with all units kept.

    Args:
        layers: layer -> its cost with 0, 1, ..., `tokens` tokens; in order of execution.
        tokens: tokens that the first layer sees.
        protected: see `TokenSchedule`.
        pair: layer -> cost of comparing two tokens after it, in order to merge.
    """

    layers: Mapping[str, Sequence[float]]
    tokens: int
    protected: int
    pair: Mapping[str, float]

    def of(self, schedule: TokenSchedule) -> float:
        """The cost of the model with a schedule, matching included."""
        lengths = schedule.lengths(self.layers, self.tokens)
        return sum(self.layers[layer][length] for layer, length in lengths.items()) + self.matching(schedule)

    def matching(self, schedule: TokenSchedule) -> float:
        """The cost of the matching alone."""
        cost = 0.0
        for layer, length in schedule.lengths(self.layers, self.tokens).items():
            if schedule.merges.get(layer):
                others = most_merges(length, self.protected)
                cost += others * (length - self.protected - others) * self.pair[layer]
        return cost


def constant_schedule(costs: TokenCosts, budget: float) -> TokenSchedule | None:
    """Equally many merges after every layer but the last, as few as fit the budget (ToMe); `None` if none do.

    Args:
        costs: the model's costs.
        budget: the most that the model may cost.
    """
    for merges in range(most_merges(costs.tokens, costs.protected) + 1):
        counts, left = {}, costs.tokens
        for layer in list(costs.layers)[:-1]:
            counts[layer] = min(merges, most_merges(left, costs.protected))
            left -= counts[layer]
        schedule = TokenSchedule(costs.protected, counts)
        if costs.of(schedule) <= budget:
            return schedule
    return None


def scored_schedule(costs: TokenCosts, losses: Mapping[str, Sequence[float]], budget: float) -> TokenSchedule | None:
    """Merge where a pair loses least for what it saves, one by one, until the budget holds; `None` if it never does.

    Losses are those of merging after one layer alone. Where fewer tokens are left, each stands for more: merging a
    share of them is taken to lose what merging that share of all tokens does.

    Args:
        costs: the model's costs.
        losses: layer -> what the first, second, ... pair merged after it is expected to lose; never falling.
        budget: the most that the model may cost.
    """
    total = {layer: [0.0, *accumulate(pairs)] for layer, pairs in losses.items()}
    schedule = TokenSchedule(costs.protected, dict.fromkeys(list(costs.layers)[:-1], 0))
    cost, loss = costs.of(schedule), 0.0
    while cost > budget:
        best, least = None, float("inf")
        for layer, pairs in schedule.merges.items():
            further = _possible(costs, {**schedule.merges, layer: pairs + 1})
            saved = cost - costs.of(further)
            rate = (_loss(costs, further, total) - loss) / saved if saved > 0 else float("inf")
            if rate < least:
                best, least = further, rate
        if best is None:
            return None
        schedule, cost, loss = best, costs.of(best), _loss(costs, best, total)
    return schedule


def _possible(costs: TokenCosts, merges: Mapping[str, int]) -> TokenSchedule:
    """The schedule of these merges, each at most as many as tokens have partners."""
    lengths = TokenSchedule(costs.protected, merges).lengths(costs.layers, costs.tokens)
    most = {layer: most_merges(length, costs.protected) for layer, length in lengths.items()}
    return TokenSchedule(costs.protected, {layer: min(pairs, most[layer]) for layer, pairs in merges.items()})


def _loss(costs: TokenCosts, schedule: TokenSchedule, total: Mapping[str, Sequence[float]]) -> float:
    """What a schedule is expected to lose; `total[layer][n]` is the loss of merging n pairs of all tokens."""
    lengths = schedule.lengths(costs.layers, costs.tokens)
    loss = 0.0
    for layer, pairs in schedule.merges.items():
        if pairs:
            place = pairs * (costs.tokens - costs.protected) / (lengths[layer] - costs.protected)
            below = min(int(place), len(total[layer]) - 2)
            loss += total[layer][below] + (place - below) * (total[layer][below + 1] - total[layer][below])
    return loss
