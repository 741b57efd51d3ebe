"""How much memory something takes."""

import pytest
import torch

from optimum_optin.timing.peaks import PeakMeter


def matrices_taken(work, features):
    """How many matrices of features x features in float64 are in memory at most while something is done.

    It is done three times, and the least counts: whatever else the process does meanwhile takes memory, too.
    """
    peaks = [PeakMeter(torch.device("cpu")).peak(work) for _ in range(3)]
    if None in peaks:
        pytest.skip("nobody tells how much memory is taken")
    return min(peaks) / (8 * features**2)
