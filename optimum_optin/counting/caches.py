"""Caches: a cache counts the tokens that it holds by keys, so attention without heads leaves it a number for each.

transformers takes a layer of a cache without keys for one without tokens: generation would go on at the first position,
or stop where a sliding window is cut. What stands in for an attention writes zeros; where none does, a head must stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache

from ..architectures.group import HEADS, Group, Skip
from ..models.identity import config_of
from ..running.batch import Batch
from ..running.forward import call_model, takes
from ..running.memory import is_out_of_memory

Written = Mapping[str, set[tuple[str, int]]]
"""Path of a module -> arguments that it was given a cache by, and layers of the cache that it wrote to."""


@torch.no_grad()
def counted_by_caches(model: nn.Module, groups: Iterable[Group], sample: Batch) -> list[Group]:
    """The groups, those of heads with what stands in for them in a cache, or at least one unit to stay.

    Args:
        model: the model, frozen.
        groups: its groups.
        sample: what to run.
    """
    groups = list(groups)
    bare = [group for group in groups if _is_bare(group)]
    paths = [skip.path for group in bare for skip in group.cut.skips]
    asked, written = _seen(model, paths, sample) if bare else (set(), {})
    return [_counted(model, group, asked, written) if _is_bare(group) else group for group in groups]


def _counted(model: nn.Module, group: Group, asked: set[int], written: Written) -> Group:
    """A group of heads that may go, with the layer of a cache that its stand-in writes to."""
    skips = tuple(_with_cache(skip, written.get(skip.path, set())) for skip in group.cut.skips)
    silent = any(written.get(skip.path) and skip.cache is None for skip in skips)
    if silent or (not skips and _layers_of(model, group) & asked):
        return replace(group, least=1)
    return replace(group, cut=replace(group.cut, skips=skips))


def _with_cache(skip: Skip, written: set[tuple[str, int]]) -> Skip:
    """A skip with what it was seen to write to; without, if it wrote to several layers, or was not told by name."""
    ((name, number),) = written if len(written) == 1 else {("", 0)}
    return replace(skip, cache=name, cache_layer=number) if name else skip


class _NotingCache(DynamicCache):
    """A cache that notes which of its layers are asked how many tokens they hold, and who writes to which.

    Args:
        config: of the decoder.

    Attributes:
        asked: numbers of layers.
        inside: the path of what is running, if it is one of those that are watched, and the argument that it was given
            the cache by, `""` if by none with a name.
        written: path -> the arguments and the layers.
    """

    def __init__(self, config: object) -> None:
        super().__init__(config=config)
        self.asked: set[int] = set()
        self.inside: tuple[str, str] | None = None
        self.written: dict[str, set[tuple[str, int]]] = defaultdict(set)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        self.asked.add(layer_idx)
        return super().get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        self.asked.add(layer_idx)
        return super().get_mask_sizes(query_length, layer_idx)

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if self.inside is not None:
            path, argument = self.inside
            self.written[path].add((argument, layer_idx))
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def _seen(model: nn.Module, paths: Iterable[str], sample: Batch) -> tuple[set[int], Written]:
    """Numbers of the layers of a cache that tell how many tokens it holds, and what modules write to; nothing of a
    model that takes no cache."""
    config = config_of(model)
    if config is None or not takes(model, "past_key_values"):
        return set(), {}
    text = config.get_text_config(decoder=True)
    noting = _NotingCache(text)
    paired = getattr(config, "is_encoder_decoder", False)
    cache = EncoderDecoderCache(noting, DynamicCache(config=text)) if paired else noting
    with ExitStack() as stack:
        for path in paths:
            module = model.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(_entering(noting, cache, path), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(_leaving(noting)).remove)
        try:
            call_model(model, {**sample, "past_key_values": cache})
        except Exception as error:  # a class of the user's own may have caches of another kind
            if is_out_of_memory(error):
                raise
            return set(), {}
    return noting.asked, noting.written


def _entering(noting: _NotingCache, cache: object, path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        noting.inside = path, next((name for name, value in kwargs.items() if value is noting or value is cache), "")

    return hook


def _leaving(noting: _NotingCache) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        noting.inside = None

    return hook


def _is_bare(group: Group) -> bool:
    """Whether a group of heads may lose all of them."""
    return group.role.endswith(HEADS) and group.least == 0


def _layers_of(model: nn.Module, group: Group) -> set[int]:
    """Numbers of the cache's layers that modules around a group's readers write to."""
    paths = (part.tensor.rpartition(".")[0] for part in (*group.cut.reads, *group.cut.writes))
    around = {path[:place] for path in paths for place, letter in enumerate(path) if letter == "."}
    numbers = (vars(model.get_submodule(path)).get("layer_idx") for path in around)
    return {number for number in numbers if type(number) is int}
