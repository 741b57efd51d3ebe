"""Sweeps: one model pruned to many budgets, each measured and timed in one run, for a table and a picture."""

from .points import SweepPoint
from .sweep import Sweep

__all__ = ["Sweep", "SweepPoint"]
