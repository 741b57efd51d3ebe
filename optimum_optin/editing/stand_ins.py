"""Stand-ins: what is left of modules that have lost all their units, and returns what these would return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from ..architectures.group import Skip


def stand_in(model: nn.Module, skip: Skip) -> None:
    """Put a stand-in in the place of a module, in place; the linear whose bias is left must have been emptied.

    A linear without outputs stays what it is, as classes may look for its weight when they are made, but for graphs.
    """
    module = model.get_submodule(skip.path)
    if hasattr(module, "hold"):
        module.in_graphs = True
        return
    reader = skip.reader.removeprefix(f"{skip.path}.") if skip.reader else ""
    left = StandIn(
        argument=skip.argument,
        position=skip.position,
        returns=skip.returns,
        width=skip.width,
        cache=skip.cache or "",
        cache_layer=skip.cache_layer,
        reader=reader,
        linear=module.get_submodule(reader) if reader else None,
    )
    model.set_submodule(skip.path, left.train(module.training))


class StandIn(nn.Module):
    """What stands in the place of a module that has lost all its units.

    The linear that read the units keeps its name, and with it its bias in the state dict. No tensor without elements
    goes from one operation of a graph to the next, as exporters and quantizers make nonsense of them.

    Args:
        argument: see `Skip`.
        position: see `Skip`.
        returns: see `Skip`.
        width: see `Skip`.
        cache: see `Skip`; `""` for none.
        cache_layer: see `Skip`.
        reader: name of the linear inside whose bias is left; `""` for zeros.
        linear: the linear itself.
    """

    def __init__(self, *, reader: str, linear: nn.Module | None, **form: Any):
        super().__init__()
        self.form = {**form, "reader": reader}
        home: nn.Module = self
        *around, last = reader.split(".")
        for name in around:
            home.add_module(name, nn.Module())
            home = home.get_submodule(name)
        if linear is not None:
            home.add_module(last, linear)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module would return for these arguments."""
        form = self.form
        tokens = kwargs.get(form["argument"], args[form["position"]] if form["position"] < len(args) else None)
        if tokens is None:
            raise ValueError(
                f"a module without units is given no {form['argument'] or 'tokens'}, nor anything at place "
                f"{form['position']}: its entry in stand_ins is damaged, or of another version of transformers."
            )
        if self.training:  # in the graph, so that what comes before gets a gradient, of 0
            column = tokens[..., :0].sum(-1, keepdim=True)
        else:
            column = tokens.new_zeros(1).expand(*tokens.shape[:-1], 1)
        if form["cache"] and (cache := kwargs.get(form["cache"])) is not None:  # one number for each token
            keys = column.unsqueeze(1)  # (batch, 1, tokens, 1)
            getattr(cache, "self_attention_cache", cache).update(keys, keys, form["cache_layer"])
        if form["reader"]:
            linear = self.get_submodule(form["reader"])
            output = linear(column if hasattr(linear, "hold") else tokens[..., :0])  # else it is in an adapter
        elif form["width"]:
            output = column.expand(*column.shape[:-1], form["width"])
        else:
            output = no_channels(tokens)
        return (output, *[None] * (form["returns"] - 1)) if form["returns"] else output


def no_channels(tokens: Tensor) -> Tensor:
    """What stands for no channels, which nothing reads: one in a graph, and else none, as adapters would read it."""
    in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return tokens.new_zeros(1).expand(*tokens.shape[:-1], 1) if in_graph else tokens[..., :0]


class EmptyLinear(NonDynamicallyQuantizableLinear):
    """A linear that lost all its inputs, of which its bias is left, or all its outputs, of which nothing is.

    Its weights have no elements. They are no parameters, as they would be saved and exported, and quantizers compute
    nonsense of them; but they are attributes, for code that looks at a linear's weight (PEFT).

    Attributes:
        in_graphs: whether it is known that in a graph one column may stand for no outputs.
    """

    in_graphs = False

    def hold(self, empty: Mapping[str, Tensor]) -> None:
        """Keep tensors without elements as plain attributes, by name."""
        self.empty = tuple(empty)
        vars(self).update({name: nn.Parameter(tensor, requires_grad=False) for name, tensor in empty.items()})
        for name in empty:
            getattr(self, name)._is_hf_initialized = True  # transformers would divide by its size (SigLIP)

    def forward(self, input: Tensor) -> Tensor:
        """The bias, or zeros, for each token of `input` (shape (..., anything)): shape (..., outputs)."""
        outputs = self.nf if isinstance(self, Conv1D) else self.out_features
        if outputs == 0:
            return no_channels(input) if self.in_graphs else input[..., :0]
        bias = input.new_zeros(outputs) if self.bias is None else self.bias.to(input.dtype)
        if self.training:  # see `StandIn`
            bias = bias + input[..., :0].sum(-1, keepdim=True)
        return bias.expand(*input.shape[:-1], -1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.hold({name: fn(getattr(self, name)) for name in self.empty})
        return nn.Module._apply(self, fn, recurse)


class EmptyConv1D(Conv1D):
    """The same of GPT-2's linear, whose weight is the other way round."""

    in_graphs = False
    hold, forward, _apply = EmptyLinear.hold, EmptyLinear.forward, EmptyLinear._apply


_EMPTIED = {
    nn.Linear: EmptyLinear,
    NonDynamicallyQuantizableLinear: EmptyLinear,
    EmptyLinear: EmptyLinear,
    Conv1D: EmptyConv1D,
    EmptyConv1D: EmptyConv1D,
}


def can_be_empty(module: nn.Module) -> bool:
    """Whether what a module computes without inputs or outputs is known; another may compute anything."""
    return type(module) in _EMPTIED


def empty(module: nn.Module) -> None:
    """Let a linear without inputs or outputs do without a weight, in place; see `EmptyLinear`."""
    if not can_be_empty(module):
        return
    held = {name: getattr(module, name) for name in vars(module).get("empty", ())}  # it may lose both sides in turn
    tensors = {name: tensor.detach() for name, tensor in module.named_parameters() if tensor.numel() == 0}
    for name in tensors:
        delattr(module, name)
    module.__class__ = _EMPTIED[type(module)]  # in place, so that hooks stay
    module.hold(held | tensors)
