"""A model's layers and groups: by its row in the table of architectures, or else found by tracing."""

from .declared import key_projection, key_projections
from .find import find_groups, find_layers, groups_of, stack_inputs

__all__ = ["find_groups", "find_layers", "groups_of", "key_projection", "key_projections", "stack_inputs"]
