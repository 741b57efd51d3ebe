"""Proof that a model's groups are what its row says: on one sample, of this very model, before anything is cut."""

from .architecture import check_architecture
from .verdict import ArchitectureProof, GroupProof

__all__ = ["ArchitectureProof", "GroupProof", "check_architecture"]
