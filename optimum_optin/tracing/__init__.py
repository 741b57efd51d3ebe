"""Groups of removable units found in any model by running it: no table of architectures, no table of operations."""

from .found import FoundGroup, LeftOut, Slice, Trace
from .trace import trace

__all__ = ["FoundGroup", "LeftOut", "Slice", "Trace", "trace"]
