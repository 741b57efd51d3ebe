"""Which units a model has: groups, the table of architectures, and what finds a model's groups."""

from . import table  # noqa: F401  (registers the rows)
from .find import find_groups, find_layers, key_projection, key_projections, stack_inputs
from .registry import known_architectures, register_architecture, row_of
from .stacks import Stack, Sublayer, heads, neurons

__all__ = [
    "Stack",
    "Sublayer",
    "find_groups",
    "find_layers",
    "heads",
    "key_projection",
    "key_projections",
    "known_architectures",
    "neurons",
    "register_architecture",
    "row_of",
    "stack_inputs",
]
