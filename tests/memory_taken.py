"""How much memory something takes."""

import pytest
import torch

from optimum_optin.timing.peaks import PeakMeter


def memory_taken(work):
    """How many bytes are in memory at most while something is done.

    It is done three times, and the least counts: whatever else the process does meanwhile takes memory, too.
    """
    peaks = [PeakMeter(torch.device("cpu")).peak(work) for _ in range(3)]
    if None in peaks:
        pytest.skip("nobody tells how much memory is taken")
    return min(peaks)


def matrices_taken(work, features):
    """The same, in matrices of features x features in float64."""
    return memory_taken(work) / (8 * features**2)
