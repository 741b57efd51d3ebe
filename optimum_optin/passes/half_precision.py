"""Models in half precision on a CPU that has no kernels for it: their products are taken in float32.

PyTorch multiplies bfloat16 and float16 on any CPU, but by plain loops where oneDNN has no kernels. On one with AVX2
and no more, a linear from 2,048 to 8,192 features takes 5 times as long as in float32 for 256 tokens in bfloat16, and
its backward pass 270 times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_KERNELS = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}  # as oneDNN says
_WIDE = 1 << 22  # numbers of a weight that are float32 at a time: 16 MB

_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default, _aten.addmm.default}
_OTHERS = {
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.convolution.default,
    _aten.convolution_backward.default,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}


@contextmanager
def float_products(model: nn.Module) -> Iterator[None]:
    """Take products of a model's half-precision tensors in float32, if they are on a CPU without kernels for them.

    Sums are those of float32, and results are rounded to the tensors' own type, as half-precision kernels do it too.
    Of a linear's weight, a part at a time is held in float32. Not for what times the model, since users run it without.
    """
    slow = {parameter.dtype for parameter in model.parameters() if parameter.device.type == "cpu"} & _KERNELS.keys()
    slow = {dtype for dtype in slow if not _has_kernels(dtype)}
    if not slow:
        yield
        return
    with _FloatProducts(slow):
        yield


def _has_kernels(dtype: torch.dtype) -> bool:
    known = getattr(torch.ops.mkldnn, _KERNELS[dtype], None)  # missing where PyTorch is built without oneDNN
    return known is not None and known()


class _FloatProducts(TorchDispatchMode):
    """See `float_products`.

    Args:
        slow: the types that have no kernels.
    """

    def __init__(self, slow: set[torch.dtype]):
        super().__init__()
        self.slow = slow

    def __torch_dispatch__(self, func, types, args=(), kwargs: Mapping[str, Any] | None = None):
        kwargs = kwargs or {}
        first = args[0] if args else None
        if not isinstance(first, Tensor) or first.dtype not in self.slow or first.device.type != "cpu":
            return func(*args, **kwargs)
        if func in _PRODUCTS:
            return _product(func, args, kwargs)
        if func in _OTHERS:
            return _as(first.dtype, func(*_as(torch.float32, args), **_as(torch.float32, kwargs)))
        with self:  # in inference mode, functions that are made up of others come whole
            parts = func.decompose(*args, **kwargs)
        return func(*args, **kwargs) if parts is NotImplemented else parts


def _product(func, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """`mm` or `addmm`, some columns of the second matrix at a time."""
    *added, one, other = args
    columns = other.shape[1]
    result = one.new_empty(len(one), columns)
    wide = one.float()
    step = max(1, _WIDE // max(1, len(other)))
    for start in range(0, columns, step):
        part = slice(start, start + step)
        terms = [each.float() if each.dim() == 0 or each.shape[-1] == 1 else each[..., part].float() for each in added]
        result[:, part] = func(*terms, wide, other[:, part].float(), **kwargs)
    return result


def _as(dtype: torch.dtype, values: Any) -> Any:
    """Values with all floating-point tensors of one type."""
    return tree_map_only(Tensor, lambda each: each.to(dtype) if each.is_floating_point() else each, values)
