"""Experts in one module, as transformers packs them: what the neurons of each are for the tokens that it is given.

A router gives each token a few experts, with a weight for each. What an expert makes of a token is multiplied by that
weight and added to what the others make of it. So the module is linear in what its neurons are times these weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SAID = ("has_gate", "has_bias", "is_transposed", "num_experts")  # of each class that transformers packs


@dataclass(frozen=True)
class Routed:
    """The tokens that an expert is given.

    Args:
        tokens: their numbers in what the module reads, shape (routed,).
        inputs: its neurons there, times the weight of each token, shape (routed, neurons).
        weights: these weights, shape (routed,).
    """

    tokens: Tensor
    inputs: Tensor
    weights: Tensor


def is_packed(module: nn.Module) -> bool:
    """Whether a module is experts whose weights are tensors of three dimensions, of a class that says how it uses them.

    A norm behind each expert would make it another function of its neurons than a linear one.
    """
    weight = module._parameters.get("down_proj")
    said = weight is not None and weight.dim() == 3 and all(hasattr(module, name) for name in _SAID)
    return said and hasattr(module, "_apply_gate") and not getattr(module, "has_post_expert_norm", False)


def routed(module: nn.Module, read: Sequence[Tensor], expert: int) -> Routed:
    """What one expert is given in a call.

    Args:
        module: packed experts.
        read: what it was called with: hidden states, shape (tokens, channels); the experts of each token, shape
            (tokens, chosen); and their weights, of that shape.
        expert: which.
    """
    hidden, chosen, weights = read[:3]
    tokens, places = torch.where(chosen == expert)
    name = "gate_up_proj" if module.has_gate else "up_proj"
    written = hidden[tokens] @ _by_columns(module, name, expert)
    if module.has_bias:
        written = written + getattr(module, f"{name}_bias")[expert]
    neurons = module._apply_gate(written) if module.has_gate else module.act_fn(written)
    weights = weights[tokens, places]
    return Routed(tokens, neurons * weights[:, None], weights)


def weight_of_expert(module: nn.Module, expert: int) -> Tensor:
    """What reads the neurons of an expert, shape (channels, neurons); a view."""
    return _by_columns(module, "down_proj", expert).T


def add_to_expert(module: nn.Module, expert: int, change: Tensor) -> None:
    """Add a change of shape (channels, neurons) to what reads the neurons of an expert, in place."""
    weight = weight_of_expert(module, expert)
    weight += change.to(weight)


def written_by_experts(module: nn.Module, read: Sequence[Tensor]) -> Tensor:
    """What the module returns if it is what is said above, shape (tokens, channels): for comparison."""
    written = torch.zeros_like(read[0])
    for expert in range(module.num_experts):
        given = routed(module, read, expert)
        own = given.inputs @ weight_of_expert(module, expert).T
        if module.has_bias:
            own = own + given.weights[:, None] * module.down_proj_bias[expert]
        written.index_add_(0, given.tokens, own.to(written))
    return written


def neurons_of_each(module: nn.Module) -> int:
    """How many neurons each expert has."""
    return module.down_proj.shape[1 if module.is_transposed else 2]


def _by_columns(module: nn.Module, name: str, expert: int) -> Tensor:
    """The matrix of one expert by which rows are multiplied, shape (inputs, outputs); a view."""
    weight = getattr(module, name).detach()[expert]
    return weight if module.is_transposed else weight.T
