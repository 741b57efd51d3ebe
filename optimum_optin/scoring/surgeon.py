"""Trajectory-weighted surgeon: what a unit costs after the kept ones have taken over what they can.

After a refit of its consumer, removing a unit costs only what the kept units cannot express. With H the covariance of
the consumer's inputs and Gamma = E[g g^T] the covariance of the probes' gradients at its output, removing column j of
the weight W costs (w_j^T Gamma w_j) / [H^-1]_jj, the optimal brain surgeon's form (Hassibi & Stork 1993) in the metric
of OPTIN's trajectory. Units are removed greedily, with updates of W and H^-1; each group yields a nested order and
increments that never fall, which are per-unit scores again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from ..architectures import find_layers
from ..config import OptinConfig
from ..groups import Batch, Group, token_mask
from ..losses import probe_manifold, probe_output
from ..masking import differentiable
from ..surgeon import removal_scores
from ..trajectory import compared_output, draw_rows, observed, recorded, trajectory_features
from .registry import Terms, register_scorer


@register_scorer("surgeon")
@torch.inference_mode(False)
def score_surgeon(model: nn.Module, groups: Sequence[Group], batches: Sequence[Batch], config: OptinConfig) -> Terms:
    """Costs of removal after a refit, one term for each metric; see `register_scorer`.

    Half of `config.probes`, and at least one for every minibatch: a probe has a gradient for every token here. Probe
    k sees batch k mod len(batches).
    """
    generator = torch.Generator().manual_seed(config.seed)
    rows = [draw_rows(batch, config.rows, generator) for batch in batches]
    sums = {group.key: _Sums(model.get_submodule(group.consumer)) for group in groups}
    probes = max(config.probes // 2, len(batches))
    for probe in tqdm(range(probes), desc="surgeon scores", unit="probe"):
        index = probe % len(batches)
        _probe(
            model, groups, batches[index], rows[index], sums=sums, temperature=config.temperature, generator=generator
        )
    return _removal_terms(model, groups, sums, probes)


def _probe(
    model: nn.Module,
    groups: Sequence[Group],
    batch: Batch,
    rows: Tensor,
    *,
    sums: Mapping[str, _Sums],
    temperature: float,
    generator: torch.Generator,
) -> None:
    """Add a minibatch, and one probe of each term on it, to the sums, in place."""
    with (
        differentiable(model, groups[0]),
        observed(model, [group.consumer for group in groups]) as seen,
        recorded(model, find_layers(model)) as outputs,
    ):
        final = compared_output(model, batch, rows)
    features = trajectory_features(outputs, rows)
    functionals = {"trajectory": sum(probe_manifold(each, generator) for each in features.values())}
    if final is not None:
        functionals["output"] = probe_output(final.values, temperature, final.kind, generator)
    valid = token_mask(batch)
    for group in groups:
        sums[group.key].add_inputs(seen[group.consumer].input.detach()[valid])
    leaves = [seen[group.consumer].output for group in groups]
    for number, (term, functional) in enumerate(functionals.items(), start=1):
        gradients = torch.autograd.grad(functional, leaves, retain_graph=number < len(functionals))
        for group, gradient in zip(groups, gradients, strict=True):
            sums[group.key].add_gradients(term, gradient[valid])


def _removal_terms(model: nn.Module, groups: Sequence[Group], sums: Mapping[str, _Sums], probes: int) -> Terms:
    """One order of removal per group, by the mean of the terms, each normalised to one; and its costs in each term."""
    names = list(sums[groups[0].key].metrics)
    traces = {
        name: max(sum(float(sums[group.key].metrics[name].trace()) for group in groups), 1e-300) for name in names
    }
    terms: Terms = {name: {} for name in names}
    for group in tqdm(groups, desc="removal orders", unit="group"):
        weight = model.get_submodule(group.consumer).weight.detach()
        metrics = [sums[group.key].metrics[name] / traces[name] for name in names]
        scores = removal_scores(weight, sums[group.key].covariance(), metrics, group.width)
        for name, score in zip(names, scores, strict=True):
            terms[name][group.key] = (score * (traces[name] / probes)).cpu()
    return terms


class _Sums:
    """Running sums at one consumer: inputs for H, gradients at the output for Gamma."""

    def __init__(self, consumer: nn.Linear):
        self.centred = consumer.bias is not None  # a bias absorbs the mean of what is removed
        zeros = {"dtype": torch.float64, "device": consumer.weight.device}
        self.count = 0
        self.total = torch.zeros(consumer.in_features, **zeros)
        self.gram = torch.zeros(consumer.in_features, consumer.in_features, **zeros)
        self.metrics: dict[str, Tensor] = {}

    def add_inputs(self, tokens: Tensor) -> None:
        tokens = tokens.float()
        self.count += len(tokens)
        self.total += tokens.sum(0)
        self.gram += tokens.T @ tokens

    def add_gradients(self, term: str, gradients: Tensor) -> None:
        gradients = gradients.float()
        self.metrics[term] = self.metrics.get(term, 0) + (gradients.T @ gradients).double()

    def covariance(self) -> Tensor:
        mean, moment = self.total / self.count, self.gram / self.count
        # Constant inputs leave rounding noise on the diagonal; the floor keeps H invertible.
        floor = 1e-5 * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)
        return moment - (mean.outer(mean) if self.centred else 0) + floor
