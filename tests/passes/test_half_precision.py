"""Products of half-precision tensors on a CPU without kernels for them."""

import copy

import pytest
import torch
from tiny import tiny_model, tiny_samples
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.pytorch_utils import Conv1D

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.passes import half_precision
from optimum_optin.passes.half_precision import float_products
from optimum_optin.pipeline import prune_model, report_of
from optimum_optin.readiness import proved_groups

DTYPES = [torch.bfloat16, torch.float16]


class Applied(nn.Module):
    """A function without weights, in a module that has a type."""

    def __init__(self, function):
        super().__init__()
        self.function, self.typed = function, nn.Parameter(torch.zeros(()))

    def forward(self, inputs):
        return self.function(inputs)


def attended(heads):
    return scaled_dot_product_attention(heads, heads.flip(-2), heads.roll(1, -1), is_causal=True)


MODULES = {
    "linear": (nn.Linear(16, 24), (2, 3, 16)),
    "without a bias": (nn.Linear(16, 24, bias=False), (2, 3, 16)),
    "one output": (nn.Linear(16, 1), (5, 16)),
    "no tokens": (nn.Linear(16, 24), (0, 16)),
    "no inputs": (nn.Linear(0, 24), (2, 0)),
    "Conv1D": (Conv1D(24, 16), (2, 3, 16)),
    "convolution": (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 6, 6)),
    "attention": (Applied(attended), (2, 3, 5, 8)),
    "matrices": (Applied(lambda each: each @ each.roll(1, -1).mT), (2, 3, 5, 8)),
    "one bias for all": (Applied(lambda each: torch.addmm(each.sum(), each, each.roll(1, -1).mT)), (6, 5)),
    "matrices and sums": (Applied(lambda each: torch.baddbmm(each, each.roll(1, -1), each)), (3, 5, 5)),
}


class Multiplied(TorchDispatchMode):
    """The types of floating-point tensors that products are called with."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(name in str(func) for name in ("mm.", "addmm", "convolution", "attention_for_cpu_backward")):
            tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
            self.dtypes |= {each.dtype for each in tensors if each.is_floating_point() and each.is_cpu}
        return func(*args, **kwargs)


@pytest.fixture(params=[40, 1 << 22], ids=["in parts", "whole"])
def no_kernels(request, monkeypatch):
    monkeypatch.setattr(half_precision, "_has_kernels", lambda dtype: False)
    monkeypatch.setattr(half_precision, "_WIDE", request.param)


def run(module, inputs, dtype, grad):
    """What a module writes, rounded, and the gradient of a sum of it."""
    with torch.inference_mode(not grad):
        inputs = inputs.clone().requires_grad_(grad)
        outputs = module(inputs.to(next(module.parameters()).dtype)).to(dtype)
        gradients = torch.autograd.grad(outputs.float().sin().sum(), inputs) if grad else ()
    return outputs, *gradients


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("grad", [True, False], ids=["gradient", "inference"])
def test_results_are_those_of_float32_rounded(no_kernels, dtype, name, grad):
    module, shape = MODULES[name]
    half = copy.deepcopy(module).to(dtype)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    with Multiplied() as multiplied, float_products(half):
        found = run(half, inputs, dtype, grad)
    expected = run(copy.deepcopy(half).float(), inputs, dtype, grad)
    assert dtype not in multiplied.dtypes
    for one, other in zip(found, expected, strict=True):
        largest = other.abs().amax().item() if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=0, atol=4 * torch.finfo(dtype).eps * largest)


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_what_has_no_kernels_is_touched(monkeypatch, dtype):
    monkeypatch.setattr(half_precision, "_has_kernels", lambda each: each != dtype)
    inputs = torch.randn(3, 16)
    for other in {torch.float32, *DTYPES} - {dtype}:
        module = nn.Linear(16, 24).to(other)
        with Multiplied() as multiplied, float_products(module):
            module(inputs.to(other))
        assert multiplied.dtypes == {other}


def test_kernels_are_as_onednn_says():
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported(), torch.ops.mkldnn._is_mkldnn_fp16_supported()
    assert tuple(map(half_precision._has_kernels, DTYPES)) == supported


@pytest.mark.parametrize("no_kernels", [1 << 22], indirect=True)
def test_no_stage_multiplies_in_half_precision(no_kernels):
    """Scores, the search's trials, the refit, the divergence, and the passes that are counted."""
    config = OptinConfig(flops=0.6, batch_size=8)
    pruner = OptinPruner(tiny_model().bfloat16(), config=config)
    groups = proved_groups(pruner.model, config)
    with Multiplied() as multiplied:
        scores = pruner.score(tiny_samples())
        pruned = prune_model(pruner.model, groups, scores, scores.calibration, config)
        report_of(pruner.model, groups, pruned, scores, config, calibration=scores.calibration, base=None)
    assert torch.bfloat16 not in multiplied.dtypes
    assert next(pruned.model.parameters()).dtype == torch.bfloat16
