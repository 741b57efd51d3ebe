"""Token merging in a live model: hooks that merge after layers, weigh attention by size, and restore all at the end.

Attention adds the logarithm of a token's size to its scores (ToMe's proportional attention), which makes a merged token
count as much as the tokens that it stands for. The last layer's output has every token again: what the merged one has
become, and by how much the token differed from it when they were merged, as if the layers since then had added the same
to all that were merged. Heads that pool, and users of the hidden states, get the shape that they were made for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..architectures.group import HEADS, Groups
from ..config import OptinConfig
from ..models.identity import attention_of
from .matching import match_tokens, merge_tokens, most_merges, take_tokens
from .schedule import TokenSchedule
from .stack import key_paths, token_layers


class _Merged(NamedTuple):
    """The fields of `MergedTokens`."""

    hidden: Tensor
    sizes: Tensor
    places: Tensor
    apart: Tensor | None = None


class MergedTokens(_Merged):
    """Hidden states on their way from layer to layer, once tokens have been merged.

    Who takes the first item of what a layer returns, as transformers does for hidden states and backbones for their
    feature maps, gets every token.

    Args:
        hidden: shape (batch, tokens, channels).
        sizes: how many tokens of the first layer each stands for, float32, shape (batch, tokens).
        places: where each token of the first layer is now, shape (batch, tokens of the first layer).
        apart: what each token of the first layer was apart from the merged one when it was merged, shape (batch, tokens
            of the first layer, channels); `None` if none was.
    """

    def __getitem__(self, index: Any) -> Any:
        return self.restored() if index == 0 else super().__getitem__(index)

    def restored(self) -> Tensor:
        """The hidden states of every token of the first layer."""
        hidden = take_tokens(self.hidden, self.places)
        return hidden if self.apart is None else hidden + self.apart


class TokenMerger:
    """The hooks of one layer.

    Args:
        merges: pairs to merge after the layer; fewer if not so many tokens have partners.
        protected: see `TokenSchedule`.
        width: features of a head's keys; `None` for a layer without heads, whose tokens are compared by its output.
        last: whether it is the last layer, which restores all tokens.
        differences: see `TokenSchedule`.
    """

    def __init__(self, merges: int, protected: int, width: int | None, last: bool, differences: bool = True):
        self.merges = merges
        self.protected = protected
        self.width = width
        self.last = last
        self.differences = differences
        # While the layer runs in a thread: the tokens that it got, and their keys.
        self.tokens: dict[int, MergedTokens | None] = {}
        self.keys: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "tokens": {}, "keys": {}}  # nothing is on its way through a copy

    def enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Forward pre-hook of the layer: unpack its input, and add the sizes to its attention."""
        tokens = args[0] if isinstance(args[0], MergedTokens) else None
        self.tokens[_thread()] = tokens
        self.keys.pop(_thread(), None)  # left by a pass that an error ended
        if tokens is None:
            return None
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        if mask is not None and not torch.compiler.is_compiling():  # transformers traces with one that masks nothing
            raise ValueError("a model that merges tokens takes no attention_mask: its tokens are not where they were.")
        hidden, sizes = tokens.hidden, tokens.sizes
        bias = sizes.log().to(hidden.dtype)[:, None, None]  # (batch, heads, queries, keys)
        if len(args) > 1:
            return (hidden, bias, *args[2:]), kwargs
        return (hidden,), {**kwargs, "attention_mask": bias}

    def keep_keys(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        """Forward hook of the key projection: keep what it returns."""
        self.keys[_thread()] = output

    def leave(self, module: nn.Module, args: tuple, output: Tensor) -> MergedTokens | Tensor:
        """Forward hook of the layer: merge, or restore."""
        tokens, keys = self.tokens.pop(_thread()), self.keys.pop(_thread(), None)
        if tokens is None:
            batch, count, _ = output.shape
            sizes = torch.ones(batch, count, device=output.device)
            tokens = MergedTokens(output, sizes, torch.arange(count, device=output.device).expand(batch, -1))
        others = (
            each if each is None else each.to(output.device) for each in (tokens.sizes, tokens.places, tokens.apart)
        )
        tokens = MergedTokens(output, *others)
        merges = min(self.merges, most_merges(output.shape[1], self.protected))
        if merges:
            if self.width and keys is None:
                raise RuntimeError(
                    "the projection that makes a layer's keys was replaced after its tokens were set to be merged by "
                    "them: exclude key projections (k_proj) from what replaces modules, e.g. quantization."
                )
            compared = output if keys is None else keys.unflatten(-1, (-1, self.width)).mean(-2)
            matching = match_tokens(compared, merges, self.protected)
            hidden, sizes = merge_tokens(output, tokens.sizes, matching, merges)
            places = matching.gather(1, tokens.places)
            apart = tokens.restored() - take_tokens(hidden, places) if self.differences else None
            tokens = MergedTokens(hidden, sizes, places, apart)
        return tokens.restored() if self.last else tokens


def _thread() -> int:
    """The thread whose pass this is; a compiler traces one pass, whoever runs it."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class MergingLayer(NamedTuple):
    """Where a layer's hooks go.

    Args:
        layer: the layer's name.
        path: its module path.
        keys: path of the linear that makes its keys; `None` for a layer without heads.
        width: features of a head's keys; `None` for a layer without heads.
    """

    layer: str
    path: str
    keys: str | None
    width: int | None


def merging_layers(model: nn.Module, groups: Groups, schedule: TokenSchedule) -> list[MergingLayer]:
    """The layers from the first that merges tokens to the last, which restores all.

    Raises:
        ValueError: see `check_attachable`.
    """
    check_attachable(model, groups, schedule)
    layers, keys = token_layers(model, groups), key_paths(model)
    widths = {group.layer: group.width for group in groups if group.role == HEADS}
    first = next((index for index, layer in enumerate(layers) if schedule.merges.get(layer)), len(layers))
    return [
        MergingLayer(layer, path, keys[path] if layer in widths else None, widths.get(layer))
        for layer, path in list(layers.items())[first:]
    ]


def attach_merging(model: nn.Module, groups: Groups, schedule: TokenSchedule) -> list[RemovableHandle]:
    """Let a model merge tokens, in place.

    Args:
        model: a model whose architecture row names its `keys`.
        groups: its groups.
        schedule: what to merge.

    Returns:
        Handles of its hooks.

    Raises:
        ValueError: see `check_attachable`.
    """
    return attach_mergers(model, merging_layers(model, groups, schedule), schedule)


def attach_mergers(model: nn.Module, layers: Sequence[MergingLayer], schedule: TokenSchedule) -> list[RemovableHandle]:
    """Put the hooks of a schedule on layers that `merging_layers` found, in place; see `attach_merging`."""
    handles: list[RemovableHandle] = []
    try:
        for place, (layer, path, keys, width) in enumerate(layers):
            last = place == len(layers) - 1
            merges = schedule.merges.get(layer, 0)
            merger = TokenMerger(merges, schedule.protected, width, last, schedule.differences)
            module = model.get_submodule(path)
            handles.append(module.register_forward_pre_hook(merger.enter, with_kwargs=True))
            # Before the hooks with which transformers keeps hidden states, which must see what the next layer gets.
            handles.append(module.register_forward_hook(merger.leave, prepend=True))
            if merger.merges and keys is not None:
                handles.append(model.get_submodule(keys).register_forward_hook(merger.keep_keys))
    except BaseException:  # an interruption, too: half of the hooks would break the model
        for handle in handles:
            handle.remove()
        raise
    return handles


def check_attachable(model: nn.Module, groups: Groups, schedule: TokenSchedule) -> None:
    """Raise if a model cannot merge tokens by a schedule.

    Raises:
        ValueError: see `check_mergeable`; a layer that the model does not have; or the model merges tokens already.
    """
    check_mergeable(model)
    layers = token_layers(model, groups)
    for layer in schedule.merges:
        if layer not in layers:
            raise ValueError(f"token schedule: {layer!r} is no layer of this model; it has {', '.join(layers)}.")
    if any(_is_merging(hook) for path in layers.values() for hook in model.get_submodule(path)._forward_hooks.values()):
        raise ValueError("this model merges tokens already: load the model that it was made from.")


def detach_merging(model: nn.Module) -> None:
    """Remove the hooks of a model that merges tokens, in place; returns nothing."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number in [number for number, hook in hooks.items() if _is_merging(hook)]:
                del hooks[number]


def _is_merging(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", None), TokenMerger)


@contextmanager
def merging(model: nn.Module, groups: Groups, schedule: TokenSchedule) -> Iterator[None]:
    """Run the model as if it merged tokens; undone on exit."""
    with ExitStack() as stack:
        for handle in attach_merging(model, groups, schedule):
            stack.callback(handle.remove)
        yield


def merges_tokens(model: nn.Module, config: OptinConfig) -> bool:
    """Whether the schedule of a model is ours to choose: `merging="auto"`, and its tokens can be merged."""
    return config.merging == "auto" and config.layout != "uniform" and is_mergeable(model)


def is_mergeable(model: nn.Module) -> bool:
    """Whether the tokens of a model can be merged."""
    try:
        check_mergeable(model)
    except ValueError:
        return False
    return True


def check_mergeable(model: nn.Module) -> None:
    """Raise if the tokens of a model cannot be merged.

    Raises:
        ValueError: says what forbids it.
    """
    check_takes_bias(model, next(iter(key_paths(model)), ""))


def check_takes_bias(model: nn.Module, layer: str) -> None:
    """Raise if the attention that a model was loaded with forbids to merge tokens, whatever its architecture.

    Args:
        model: the model.
        layer: path of one of the layers that merge.

    Raises:
        ValueError: says what forbids it.
    """
    around = (model.get_submodule(layer.rsplit(".", parts)[0]) for parts in range(1, layer.count(".") + 1))
    attention = next((found for each in (*around, model) if (found := attention_of(each))), None)
    if attention not in ("sdpa", "eager"):
        raise ValueError(
            f"tokens of a model with attn_implementation={attention!r} cannot be merged, as it takes no bias: load it "
            "with 'sdpa' or 'eager', or set merging='none'."
        )
