"""Readers: what takes channels in, a contraction with a weight or the model's output."""

from __future__ import annotations

from typing import NamedTuple

OUTPUT = "the model's output"


class Reader(NamedTuple):
    """What reads channels: a dimension of a weight, one index of which has `inner` channels; or a model's output.

    A weight that is rearranged before it is multiplied has a reader of its own for each such product, with a `dim`
    below 0: which of the weight's dimensions its channels lie along is then found like anything else.
    """

    tensor: str
    dim: int
    inner: int = 1

    @property
    def is_output(self) -> bool:
        """Whether these are channels of the model's output."""
        return self.tensor.startswith(OUTPUT)

    @property
    def is_rearranged(self) -> bool:
        """Whether the weight is multiplied in another order than it is kept in."""
        return self.dim < 0 and not self.is_output
