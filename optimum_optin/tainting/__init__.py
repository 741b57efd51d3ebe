"""Passes of a sample through a model with parts of its tensors spoilt, which show what these parts reach."""

from .passes import Passes, Untraceable, watched
from .readers import Reader

__all__ = ["Passes", "Reader", "Untraceable", "watched"]
