"""A judge of discovery: which attention and feed-forward groups a model has, by the graph that autograd records.

A contraction whose input goes back, through an activation, to the output of another one is a feed-forward network;
where it goes back through a product with a softmax of computed numbers, it is attention. A normalisation over all
channels ends both, and attention with a single head has no heads to remove. Nothing here knows of taint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

ACTIVATION = re.compile(
    r"(Gelu|Silu|Relu|Elu|LeakyRelu|Tanh|Sigmoid|Hardswish|Hardtanh|Softplus|Mish|Erf|Pow|Threshold|Clamp\w*"
    r"|Hardsigmoid|Selu|Prelu\w*|LogSigmoid|Glu|HardswishBackward)Backward\d"
)
NORM = re.compile(r"(NativeLayerNorm|NativeGroupNorm|Mean|FusedRmsNorm|LinalgVectorNorm|Norm|Var)\w*Backward\d")
SOFTMAX = re.compile(r"_?(LogSoftmax|Softmax|Topk|Sort|Index)\w*Backward\d")
SCALE = re.compile(r"(Rsqrt|Sqrt|Reciprocal|Add|Expand|ToCopy|Unsqueeze|View|Pow|Mul|Div|Clamp\w*)Backward\d")
PRODUCT = re.compile(r"(Bmm|Baddbmm|ScaledDotProduct\w*)Backward\d")
STATE_SPACE = re.compile(r"(?i).*(mamba|ssm|recurrent|delta|rwkv|lstm|mixer2|shortconv|lru|gru|kda|lightning).*")
LIMIT = 400  # nodes between two contractions


@dataclass(frozen=True)
class Expected:
    """A group that should be found.

    Args:
        kind: `"attention"`, `"ffn"`, or a role of its own: `"conv"`, `"experts"`, `"state space"`, and `"mixing"`,
            products of computed tensors without a softmax.
        written: names of the weights that write its channels.
        read: name of the weight that reads them.
    """

    kind: str
    written: tuple[str, ...]
    read: str

    @property
    def apart(self) -> bool:
        """Whether it lies in no list of layers: a projector between towers, a pooling head."""
        return not any(name.isdigit() for name in common_path(self.read, *self.written).split("."))


def common_path(*names: str) -> str:
    """The path of the smallest module around tensors."""
    paths = [name.split(".")[:-1] for name in names]
    length = 0
    while length < min(map(len, paths)) and len({path[length] for path in paths}) == 1:
        length += 1
    return ".".join(paths[0][:length])


class _Contractions(TorchFunctionMode):
    """Notes every product with a parameter: its name, the graph's node before it, and the one that it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = {each.untyped_storage().data_ptr(): name for name, each in model.named_parameters()}
        self.calls: list[tuple[str, Any, bool]] = []
        self.nodes: dict[Any, str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name not in (
            "linear",
            "addmm",
            "matmul",
            "bmm",
            "mm",
            "__matmul__",
            "__rmatmul__",
            "einsum",
            "conv1d",
            "conv2d",
        ):
            return result
        tensors = [each for each in (*args, *(kwargs or {}).values()) if isinstance(each, Tensor)]
        if name == "einsum":
            tensors = [each for arg in args for each in (arg if isinstance(arg, (tuple, list)) else [arg])]
            tensors = [each for each in tensors if isinstance(each, Tensor)]
        weights = [self._names.get(each.untyped_storage().data_ptr()) for each in tensors if each.dim() > 1]
        weights = [weight for weight in weights if weight]
        inputs = [each for each in tensors if each.untyped_storage().data_ptr() not in self._names]
        if isinstance(result, Tensor) and len(weights) == 1 and inputs and result.grad_fn is not None:
            grouped = name.startswith("conv") and tensors[1].shape[1] < tensors[0].shape[1]  # depthwise: a way through
            if not grouped:
                self.nodes[result.grad_fn] = weights[0]
                self.calls.append((weights[0], inputs[0].grad_fn, name.startswith("conv")))
        return result


def expected_groups(model: nn.Module, inputs: Mapping[str, Any]) -> list[Expected]:
    """The groups of one pass, each read once."""
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name, _ in model.named_parameters()}
    convolutions = {name for name, each in owners.items() if isinstance(each, nn.modules.conv._ConvNd)}
    torch.manual_seed(0)
    with torch.enable_grad(), _Contractions(model) as seen:
        kept = model(**inputs)
    widths = {name: _width(each, name, owners) for name, each in model.named_parameters()}
    found: dict[str, Expected] = {}
    for read, before, _ in seen.calls:
        behind = _behind(before, seen.nodes, widths[read])
        kind = next((kind for kind in ("attention", "mixing", "ffn") if behind[kind]), "ffn")
        written = tuple(sorted(behind[kind]))
        if not written or read in written or read in found:
            continue
        if kind == "attention" and _has_one_head(model, read, written):
            continue
        if any("expert" in name for name in (read, *written)):
            kind = "experts"
        elif _inside(model, read, STATE_SPACE):
            kind = "state space"
        elif convolutions & {read, *written}:
            kind = "conv"
        found[read] = Expected(kind, written, read)
    del kept
    return list(found.values())


def _behind(node: Any, contractions: Mapping[Any, str], width: int) -> Mapping[str, set[str]]:
    """The weights behind a node, by the kind of group that they make with it.

    Args:
        node: of the graph, in front of a contraction.
        contractions: node -> weight.
        width: how many channels the contraction reads.
    """
    found: dict[str, set[str]] = {"": set(), "attention": set(), "mixing": set(), "ffn": set()}
    waiting: list[tuple[Any, str]] = [(node, "")]
    seen = set()
    while waiting and len(seen) < LIMIT:
        node, kind = waiting.pop()
        if node is None or (node, kind) in seen:
            continue
        seen.add((node, kind))
        if node in contractions:
            found[kind].add(contractions[node])
            continue
        name = type(node).__name__
        inputs = [each for each, _ in node.next_functions]
        products = ("attention", "mixing")
        if SOFTMAX.fullmatch(name) or (kind not in products and _normalises(node, width)):
            continue
        if name.startswith("ScaledDotProduct"):
            inputs = inputs[2:3]
        if kind not in products and PRODUCT.fullmatch(name):
            kind = "attention" if _weighs(node, contractions) else "mixing"
        elif not kind and ACTIVATION.fullmatch(name):
            kind = "ffn"
        waiting += [(each, kind) for each in inputs]
    return found


def _weighs(node: Any, contractions: Mapping[Any, str]) -> bool:
    """Whether a factor of a product is a softmax."""
    if type(node).__name__.startswith("ScaledDotProduct"):
        return True
    for each, _ in node.next_functions:
        for _ in range(20):  # sliding windows are cut out of it
            if each is None or each in contractions or PRODUCT.fullmatch(type(each).__name__):
                break
            if "Softmax" in type(each).__name__:
                return True
            each = next(iter(each.next_functions), (None,))[0]  # noqa: PLW2901
    return False


def _width(weight: Tensor, name: str, owners: Mapping[str, nn.Module]) -> int:
    """How many channels a weight reads, at least."""
    if weight.dim() < 2:
        return 1
    return (
        weight.shape[0]
        if isinstance(owners[name], Conv1D)
        else min(weight.shape[-2:])
        if weight.dim() == 3
        else (weight.shape[1])
    )


def _normalises(node: Any, width: int) -> bool:
    """Whether all channels of a node's output depend on all: a norm, or a product with the inverse of a mean."""
    name = type(node).__name__
    if name.startswith("NativeLayerNorm"):
        return node._saved_normalized_shape[-1] >= width
    if NORM.fullmatch(name):
        return _reduced(node) >= width
    if not name.startswith(("Mul", "Div")):
        return False
    for each, _ in node.next_functions:
        for _ in range(8):  # from a factor back to the mean that it is made of
            if each is None:
                break
            if NORM.fullmatch(type(each).__name__):
                if _reduced(each) >= width:
                    return True
                break
            if not SCALE.fullmatch(type(each).__name__):
                break
            each = each.next_functions[0][0]  # noqa: PLW2901
    return False


def _reduced(node: Any) -> int:
    """Over how many channels a node takes the mean, where it tells; otherwise more than there are."""
    sizes, dims = getattr(node, "_saved_self_sym_sizes", None), getattr(node, "_saved_dim", None)
    if sizes is None or not dims:
        return 1 << 40
    dims = [dim - (1 << 64) if dim >= 1 << 63 else dim for dim in dims]
    return int(sizes[-1]) if -1 in dims or len(sizes) - 1 in dims else 1


def _has_one_head(model: nn.Module, read: str, written: tuple[str, ...]) -> bool:
    """Whether all modules around these tensors that have a number of heads have one."""
    counts = {
        value
        for module in model.get_submodule(common_path(read, *written)).modules()
        for name, value in vars(module).items()
        if re.fullmatch(r"n(um)?_(attention_)?heads?", name) and isinstance(value, int)
    }
    return counts == {1}


def _inside(model: nn.Module, name: str, pattern: re.Pattern[str]) -> bool:
    """Whether one of the two smallest modules around a tensor is of such a class."""
    path = name.split(".")[:-1]
    around = [model.get_submodule(".".join(path[:length])) for length in range(len(path), max(len(path) - 3, 0), -1)]
    return any(pattern.fullmatch(each) for each in [*(type(each).__name__ for each in around), *path[-2:]])
