"""K-prune: Accurate Retraining-free Pruning for Pretrained Encoder-based Language Models (Park et al., ICLR 2024).

Written from the paper. In: a model, its groups, unlabelled batches, costs and a budget. Out: masks and the pruned,
repaired model. Sublayer by sublayer, from the bottom: measure what all units that are left know, on the model as pruned
so far; find the threshold that meets the budget; prune this sublayer by it; refit its output weights.
"""

import copy

import torch
from sublayers import Walk, columns_of, regression, solve_near, sublayer_outputs
from tasks import pool
from torch import Tensor

from optimum_optin.architectures.group import HEADS
from optimum_optin.comparing.losses import CATEGORICAL, REAL
from optimum_optin.editing.masking import masked
from optimum_optin.editing.surgery import rewrite
from optimum_optin.passes.hooks import observed
from optimum_optin.passes.outputs import Output
from optimum_optin.running.batch import token_mask
from optimum_optin.running.freezing import frozen

TEMPERATURE = 2.0
REPRESENTATION = 0.00025  # lambda: weight of representational against predictive knowledge
# mu: weight of heads against neurons, of the 1 to 64 that the paper tries. Scores are compared per MAC here; on
# development rows (reactions at 0.4) that beat comparing them as they are with mu = 1 or 64 by 18 points or more, and
# mu above 1 gained nothing.
HEADS_WEIGHT = 1.0


def prune_by_knowledge(model, groups, batches, costs, budget):
    """The pruned and repaired model, and its masks; `model` stays as it is.

    Args:
        model: a dense encoder.
        groups: its groups.
        batches: calibration batches.
        costs: group key -> cost of keeping n units.
        budget: the most that the kept units may cost.
    """
    with frozen(model):
        pruned, masks = copy.deepcopy(model), {}  # frozen as well
        walk = Walk(pruned, batches)
        wanted = sublayer_outputs(model, groups, batches)
        with torch.no_grad():
            targets = [_prediction(model, batch).values for batch in batches]
        for index, group in enumerate(groups):
            walk.move_to(group.layer)
            scores = knowledge(walk, groups[index:], targets)
            masks[group.key] = above_threshold(scores, costs, budget)[group.key]
            budget -= float(costs[group.key][int(masks[group.key].sum())])
            weight = tuned_weight(
                pruned.get_submodule(group.consumer).weight,
                columns_of(masks[group.key], group.width),
                regression(walk, group, wanted),
            )
            rewrite(pruned, [group], masks)
            with torch.no_grad():
                pruned.get_submodule(group.consumer).weight.copy_(weight)
    return pruned.requires_grad_(True), masks


def knowledge(walk, groups, targets) -> dict[str, Tensor]:
    """Predictive plus lambda times representational knowledge of every unit: group key -> shape (units,).

    Predictive: half the squared gradient, mean over samples, of the divergence from the dense model's softened
    prediction; it is 0 as long as nothing is pruned, and the rest decides. Representational: squared norm of what a
    unit adds to its sublayer's output, mean over tokens.
    """
    predictive, representational = (
        {group.key: torch.zeros(group.units, dtype=torch.float64) for group in groups} for _ in range(2)
    )
    for index, (batch, target) in enumerate(zip(walk.batches, targets, strict=True)):
        masks = {group.key: torch.ones(len(target), group.units, requires_grad=True) for group in groups}
        with (
            walk.resumed(index),
            masked(walk.model, groups, masks),
            observed(walk.model, [group.consumer for group in groups]) as seen,
        ):
            loss = _divergence(_prediction(walk.model, batch), target)
        gradients = torch.autograd.grad(loss, list(masks.values()))
        for group, gradient in zip(groups, gradients, strict=True):
            inputs = seen[group.consumer].input.detach()[token_mask(batch)]
            weight = walk.model.get_submodule(group.consumer).weight
            predictive[group.key] += gradient.double().square().sum(0) / 2
            representational[group.key] += unit_norms(weight, inputs, group.width)
    samples = sum(len(target) for target in targets)
    tokens = sum(int(token_mask(batch).sum()) for batch in walk.batches)
    return {
        group.key: predictive[group.key] / samples + REPRESENTATION * representational[group.key] / tokens
        for group in groups
    }


def unit_norms(weight: Tensor, inputs: Tensor, width: int) -> Tensor:
    """Sum over the rows of ||W_u x_u||^2 of every unit, shape (units,), float64."""
    units = weight.shape[1] // width
    parts, blocks = inputs.view(-1, units, width), weight.view(-1, units, width)
    gram = torch.einsum("nua,nub->uab", parts, parts)
    return (gram * torch.einsum("oua,oub->uab", blocks, blocks)).double().sum((1, 2))


def above_threshold(scores: dict[str, Tensor], costs: dict[str, Tensor], budget: float) -> dict[str, Tensor]:
    """Keep the units above the lowest threshold that the budget pays for: group key -> boolean mask.

    Scores are compared per MAC, heads times mu.
    """
    cost = torch.cat([costs[key].diff() for key in scores])
    score = torch.cat([(HEADS_WEIGHT if key.endswith(HEADS) else 1.0) * score for key, score in scores.items()])
    order = (score / cost).argsort(descending=True, stable=True)
    kept = torch.zeros(len(score), dtype=torch.bool)
    kept[order] = cost[order].cumsum(0) <= budget * (1 + 1e-9)
    return dict(zip(scores, kept.split([len(each) for each in scores.values()]), strict=True))


def tuned_weight(weight: Tensor, columns: Tensor, sums) -> Tensor:
    """Kept columns of the consumer's weight, refitted by least squares, shape (outputs, kept columns)."""
    kept = columns.nonzero().flatten()
    gram, cross = sums.normal_equations(centred=False)
    return solve_near(gram[kept][:, kept], cross[kept], weight.T[kept]).T


def _prediction(model, batch) -> Output:
    """Logits; of a model without, the mean-pooled sentence embedding."""
    outputs = model(**batch)
    if "logits" in outputs:
        return Output(outputs.logits, CATEGORICAL)
    return Output(pool(outputs.last_hidden_state, token_mask(batch)), REAL)


def _divergence(prediction: Output, target: Tensor) -> Tensor:
    """T^2 KL of softened logits, or the squared error of embeddings, summed over samples."""
    if prediction.kind == REAL:
        return (prediction.values - target).square().sum()
    student, teacher = ((logits / TEMPERATURE).log_softmax(-1) for logits in (prediction.values, target))
    return TEMPERATURE**2 * (teacher.exp() * (teacher - student)).sum()
