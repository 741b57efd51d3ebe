"""Kwon et al., A Fast Post-Training Pruning Framework for Transformers (NeurIPS 2022), written from the paper.

In: a model, its groups and labelled data. Out: masks (label-Fisher, search, rearrangement) and the pruned model after
mask tuning. The search is the package's own, which is this paper's Algorithm 1.
"""

import copy

import torch
from sublayers import Walk, columns_of, regression, solve_near, sublayer_outputs
from torch import Tensor

from optimum_optin.compensation.ridge import Regression
from optimum_optin.editing.masking import masked
from optimum_optin.editing.surgery import rewrite
from optimum_optin.running.freezing import frozen
from optimum_optin.search.masks import search

_RANGE = 10.0  # tuned masks beyond it are refused, as in the paper
# Here we leave the paper, in its favour: it gives tuning up at the first refusal, we damp harder and try again.
_STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def label_gradients(model, groups, labelled) -> dict[str, Tensor]:
    """Gradient of every example's loss with respect to the masks: group key -> shape (examples, units)."""
    gradients = {group.key: [] for group in groups}
    with frozen(model):
        for batch in labelled:
            masks = {group.key: torch.ones(batch.examples, group.units, requires_grad=True) for group in groups}
            repeats = len(batch.inputs["input_ids"]) // batch.examples
            by_row = {key: mask.repeat_interleave(repeats, dim=0) for key, mask in masks.items()}
            with masked(model, groups, by_row):
                loss = batch.losses(model(**batch.inputs)).sum()
            for key, gradient in zip(masks, torch.autograd.grad(loss, list(masks.values())), strict=True):
                gradients[key].append(gradient.double())
    return {key: torch.cat(parts) for key, parts in gradients.items()}


def fisher_masks(
    gradients: dict[str, Tensor], costs: dict[str, Tensor], budget: float, floors: dict[str, int] | None = None
) -> dict[str, Tensor]:
    """Mask search by the diagonal Fisher, then rearrangement within each group by its Fisher block.

    Args:
        gradients: from `label_gradients`.
        costs: see `search`.
        budget: see `search`.
        floors: see `search`; the paper has none.
    """
    masks = search({key: gradient.square().mean(0) for key, gradient in gradients.items()}, costs, budget, floors)
    return {key: rearrange(mask, fisher(gradients[key])) for key, mask in masks.items()}


def fisher(gradients: Tensor) -> Tensor:
    """F, the mean outer product of gradients of shape (examples, units)."""
    return gradients.T @ gradients / len(gradients)


def rearrange(mask: Tensor, fisher_block: Tensor) -> Tensor:
    """Exchange kept and removed units one by one, always the best pair, while that lowers (1 - m)^T F (1 - m).

    Args:
        mask: shape (units,), boolean.
        fisher_block: F, shape (units, units).

    Returns:
        A mask of as many units. There are at most as many exchanges as units that are removed.
    """
    mask = mask.clone()
    for _ in range(int((~mask).sum())):
        kept, removed = mask.nonzero().flatten(), (~mask).nonzero().flatten()
        pull = fisher_block[:, removed].sum(1)
        change = fisher_block.diagonal() + 2 * pull  # of removing a kept unit as well
        back = fisher_block.diagonal() - 2 * pull  # of putting a removed unit back
        loss = change[kept][:, None] + back[removed][None] - 2 * fisher_block[kept][:, removed]
        if loss.numel() == 0 or loss.min() >= 0:
            break
        out, into = divmod(int(loss.argmin()), len(removed))
        mask[kept[out]], mask[removed[into]] = False, True
    return mask


def tune_masks(model, groups, masks, batches):
    """The pruned model with real-valued masks, folded into its consumers' columns; `model` stays as it is.

    Bottom-up, each sublayer's masks are fitted by least squares to the dense model's output of it.
    """
    with frozen(model), torch.no_grad():
        pruned = copy.deepcopy(model)  # frozen as well
        walk = Walk(pruned, batches)
        wanted = sublayer_outputs(model, groups, batches)
        for group in groups:
            walk.move_to(group.layer)
            weight = pruned.get_submodule(group.consumer).weight
            values = tuned_mask(weight, masks[group.key], regression(walk, group, wanted), group.width)
            weight *= columns_of(values, group.width).to(weight)
            rewrite(pruned, [group], masks)
    return pruned.requires_grad_(True)


def tuned_mask(weight: Tensor, mask: Tensor, sums: Regression, width: int) -> Tensor:
    """Real values of the kept units' masks: least squares over sum_u m_u W_u x_u.

    Args:
        weight: W, shape (outputs, units * width).
        mask: shape (units,), boolean.
        sums: of inputs x and targets.
        width: columns per unit.

    Returns:
        Shape (units,), float64, 0 where removed; plain ones where no solution stays in the paper's range.
    """
    weight, units = weight.double(), len(mask)
    gram, cross = sums.normal_equations(centred=False)
    gram = (gram * (weight.T @ weight)).view(units, width, units, width).sum((1, 3))
    cross = (cross * weight.T).sum(1).view(units, width).sum(1)
    kept, values = mask.nonzero().flatten(), mask.double()
    for strength in _STRENGTHS if len(kept) else ():
        solved = solve_near(gram[kept][:, kept], cross[kept, None], values[kept, None], strength)[:, 0]
        if solved.abs().max() <= _RANGE:
            values[kept] = solved
            break
    return values
