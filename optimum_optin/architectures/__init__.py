"""Which units a model has: groups, and the table of architectures."""

from . import table  # noqa: F401  (registers the rows)
from .registry import known_architectures, register_architecture, row_of
from .stacks import Stack, Sublayer, heads, neurons

__all__ = [
    "Stack",
    "Sublayer",
    "heads",
    "known_architectures",
    "neurons",
    "register_architecture",
    "row_of",
]
