"""Finite numbers, against PyTorch's own look at each of them."""

import pytest
import torch

from optimum_optin.running.memory import all_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), float("-inf")])
def test_a_single_number_tells(value, dtype):
    values = torch.randn(7, 9).to(dtype)
    values[3, 4] = value
    assert all_finite(values) == bool(values.isfinite().all())
    assert all_finite(torch.nn.Parameter(values.T)) == bool(values.isfinite().all())


@pytest.mark.parametrize("values", [torch.zeros(0), torch.arange(3), torch.tensor(2.0), torch.tensor([True])])
def test_other_tensors(values):
    assert all_finite(values)
