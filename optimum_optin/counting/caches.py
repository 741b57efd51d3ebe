"""Caches: decoder layers by whose keys a cache counts the tokens that it holds, so that a head of each must stay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache

from ..architectures.group import HEADS, Group
from ..models.identity import config_of
from ..running.batch import Batch
from ..running.forward import call_model, takes
from ..running.memory import is_out_of_memory


@torch.no_grad()
def counted_by_caches(model: nn.Module, groups: Iterable[Group], sample: Batch) -> list[Group]:
    """The groups, those of heads with at least one unit to stay where a cache tells its length by their keys.

    transformers takes a layer without numbers for one without tokens: generation would go on at the first position.

    Args:
        model: the model, frozen.
        groups: its groups.
        sample: what to run.
    """
    groups = list(groups)
    asked = _asked(model, sample) if any(_is_bare(group) for group in groups) else set()
    return [
        replace(group, least=1) if _is_bare(group) and _layers_of(model, group) & asked else group for group in groups
    ]


class _AskedCache(DynamicCache):
    """A cache that notes which of its layers are asked how many tokens they hold."""

    def __init__(self, config: object) -> None:
        super().__init__(config=config)
        self.asked: set[int] = set()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        self.asked.add(layer_idx)
        return super().get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        self.asked.add(layer_idx)
        return super().get_mask_sizes(query_length, layer_idx)


def _asked(model: nn.Module, sample: Batch) -> set[int]:
    """Numbers of the layers of a cache that tell how many tokens it holds; none of a model that takes no cache."""
    config = config_of(model)
    if config is None or not takes(model, "past_key_values"):
        return set()
    text = config.get_text_config(decoder=True)
    asked = _AskedCache(text)
    paired = getattr(config, "is_encoder_decoder", False)
    cache = EncoderDecoderCache(asked, DynamicCache(config=text)) if paired else asked
    try:
        call_model(model, {**sample, "past_key_values": cache})
    except Exception as error:  # a class of the user's own may have caches of another kind
        if is_out_of_memory(error):
            raise
        return set()
    return asked.asked


def _is_bare(group: Group) -> bool:
    """Whether a group of heads may lose all of them."""
    return group.role.endswith(HEADS) and group.least == 0


def _layers_of(model: nn.Module, group: Group) -> set[int]:
    """Numbers of the cache's layers that modules around a group's readers write to."""
    paths = (part.tensor.rpartition(".")[0] for part in (*group.cut.reads, *group.cut.writes))
    around = {path[:place] for path in paths for place, letter in enumerate(path) if letter == "."}
    numbers = (vars(model.get_submodule(path)).get("layer_idx") for path in around)
    return {number for number in numbers if type(number) is int}
