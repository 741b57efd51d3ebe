"""What removing neurons of packed experts costs: by what each is given, and by the gradient where all of them write.

To the module, an expert is a linear that reads its neurons times the router's weights, on the tokens that it is given.
So H is one for each expert, of these tokens. Gamma is one for all, as their sum is what goes on; of it, an expert has
the share of its tokens in the squares of the gradients. What is sent little, or what matters little, costs little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..passes.hooks import Passage
from ..running.experts import neurons_of_each, routed, weight_of_expert
from ..running.processes import add_up
from ..stages.tensor_files import below, prefixed
from ..sums.moments import Moments, add_up_moments, precision_of
from ..sums.symmetric import Grams, numbers_of
from .removal import Reader, order_cost, removal_scores, root_of

_UNSEEN = 1e-9  # what neurons of an expert cost that was given no token, as a share of what they might


class ExpertSums:
    """Running sums at packed experts: inputs of each for H, gradients where all write for Gamma.

    Args:
        module: packed experts.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.device = module.down_proj.device
        self.inputs = [Moments(neurons_of_each(module), self.device, torch.float32) for _ in range(module.num_experts)]
        self.metrics = Grams(len(weight_of_expert(module, 0)), self.device)
        self.shares: dict[str, Tensor] = {}  # squares of the gradients at the tokens of each expert

    @staticmethod
    def size(module: nn.Module) -> int:
        """Bytes of the sums."""
        outputs, neurons = weight_of_expert(module, 0).shape
        return 4 * (2 * numbers_of(outputs) + module.num_experts * numbers_of(neurons))

    def expect(self, term: str) -> None:
        """Have sums of gradients of a term, though none may come: those of other processes will."""
        self.metrics.expect(term)
        self.shares.setdefault(term, torch.zeros(len(self.inputs), dtype=torch.float64, device=self.device))

    def add_gradients(self, term: str, gradients: Tensor, passage: Passage, real: Tensor | None) -> None:
        """Add the gradients at the real tokens, shape (real, channels)."""
        chosen = passage.others[0] if real is None else passage.others[0][real.flatten().to(self.device)]
        squares = gradients.square().sum(1, dtype=torch.float64)
        given = torch.zeros(len(chosen), self.module.num_experts + 1, dtype=torch.bool, device=chosen.device)
        given.scatter_(1, chosen.clamp(0, self.module.num_experts), True)
        self.metrics.add(term, gradients)
        self.shares[term] += squares @ given[:, :-1].double()

    def add_inputs(self, passage: Passage, real: Tensor | None, places: Tensor | None = None) -> None:
        """Add what the experts read of the real tokens."""
        read = (passage.input, *passage.others)
        for expert, moments in enumerate(self.inputs):
            given = routed(self.module, tuple(each.detach() for each in read), expert)
            moments.add(given.inputs if real is None else given.inputs[real.flatten().to(self.device)[given.tokens]])

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, for `restore`."""
        found = {**prefixed("metrics/", self.metrics.tensors()), **prefixed("shares/", self.shares)}
        for expert, moments in enumerate(self.inputs):
            found |= prefixed(f"inputs/{expert}/", moments.tensors())
        return found

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Hold the sums that `tensors` gave."""
        self.metrics.restore(below("metrics/", saved))
        self.shares = below("shares/", saved)
        for expert, moments in enumerate(self.inputs):
            moments.restore(below(f"inputs/{expert}/", saved))

    def add_up(self) -> None:
        """Add the other processes' sums."""
        add_up_moments(self.inputs)
        self.metrics.add_up()
        add_up(*self.shares.values())

    def order_cost(self) -> float:
        """About how many multiplications the orders of removal take."""
        outputs, neurons = weight_of_expert(self.module, 0).shape
        return order_cost(outputs) + len(self.inputs) * order_cost(0, neurons)

    def removal_scores(self, traces: Mapping[str, float], shares: Sequence[float]) -> list[Tensor]:
        """See `removal.removal_scores`: the costs of the neurons, one expert's after the other's.

        The neurons of an expert that was given no token cost next to nothing, in the order of what they would cost if
        each were as large as any other.

        Args:
            traces: what the metrics are divided by.
            shares: how much each metric counts in the order.
        """
        metrics = [self.metrics.matrix(name) / trace for name, trace in traces.items()]
        if not all(metric.isfinite().all() for metric in metrics):
            raise ValueError("gradients at its output are not finite")
        squares = {name: float(each.trace()) * traces[name] for name, each in zip(traces, metrics, strict=True)}
        whole = {name: max(each, 1e-300) for name, each in squares.items()}
        roots = [root_of(metric) for metric in metrics]
        by_expert = []
        for expert, moments in enumerate(self.inputs):
            weight, seen = weight_of_expert(self.module, expert), int(moments.count) > 0
            neurons = weight.shape[1]
            precision = precision_of(neurons)
            alike = partial(torch.eye, neurons, dtype=precision, device=self.device)
            covariance = partial(moments.covariance, False, precision) if seen else alike
            parts = [float(self.shares[name][expert]) / whole[name] if seen else _UNSEEN for name in traces]
            reader = Reader(weight, covariance, metrics, roots=roots)
            order = [share * max(part, 1e-12) for share, part in zip(shares, parts, strict=True)]
            scores = removal_scores([reader], neurons, order)
            by_expert.append([score * part for score, part in zip(scores, parts, strict=True)])
        return [torch.cat(scores) for scores in zip(*by_expert, strict=True)]
