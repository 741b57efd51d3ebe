"""PyTorch's `nn.MultiheadAttention` in plain operations: its linears run as modules, and heads may be gone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainHeads(nn.MultiheadAttention):
    """A multi-head attention whose heads need not make up its width: `num_heads` of them, of any width.

    Made by `run_plainly`, of the same weights. PyTorch's own functions take it for granted that heads of equal width
    make up the embedding.
    """

    def forward(  # noqa: PLR0917 (PyTorch's own)
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `nn.MultiheadAttention`; a causal mask must be given, as there with `need_weights`."""
        if query.is_nested:
            raise ValueError("heads were removed here, so nested tensors cannot be read: set use_nested_tensor=False.")
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True needs attn_mask as well.")
        batched, first = query.dim() == 3, self.batch_first
        if not batched:
            query, key, value = (each[None] for each in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not first:
            query, key, value = (each.transpose(0, 1) for each in (query, key, value))
        attended, weights = self._attend(query, key, value, _added(key_padding_mask, query), _added(attn_mask, query))
        output = self.out_proj(attended)  # (batch, queries, channels)
        output = output if batched and first else output.transpose(0, 1) if batched else output[0]
        if not need_weights or not self.num_heads:
            return output, None
        weights = weights.mean(1) if average_attn_weights else weights
        return output, weights if batched else weights[0]

    def _reset_parameters(self) -> None:
        """See `nn.MultiheadAttention`, which is told packed weights by a flag that is off here (`run_plainly`)."""
        flag, self._qkv_same_embed_dim = self._qkv_same_embed_dim, self.in_proj_weight is not None
        super()._reset_parameters()
        self._qkv_same_embed_dim = flag

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What heads write, shape (batch, queries, heads * width), and their weights (batch, heads, queries, keys)."""
        if not self.num_heads:  # a linear without inputs reads how many tokens there are, and nothing else
            return (query if hasattr(self.out_proj, "hold") else query[..., :0]), None
        packed = self.in_proj_weight
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        matrices = separate if packed is None else packed.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = map(F.linear, (query, key, value), matrices, biases)
        if self.bias_k is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(len(v), -1, -1)], 1)
        if self.add_zero_attn:
            k, v = (torch.cat([each, torch.zeros_like(each[:, :1])], 1) for each in (k, v))
        q, k, v = (each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in (q, k, v))
        logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (batch, heads, queries, keys)
        more = logits.shape[-1] - key.shape[1]  # keys that no mask knows of
        if padding is not None:
            logits = logits + F.pad(padding, (0, more))[:, None, None]
        if mask is not None:
            logits = logits + self._by_head(F.pad(mask, (0, more)), len(query))
        weights = logits.softmax(-1)
        attended = F.dropout(weights, self.dropout, self.training) @ v
        return attended.transpose(1, 2).flatten(2), weights

    def _by_head(self, mask: Tensor, batch: int) -> Tensor:
        if mask.dim() == 2:
            return mask
        if len(mask) % batch == 0:
            maps = mask.unflatten(0, (batch, -1))
            if maps.shape[1] == self.num_heads:
                return maps
            if bool((maps == maps[:, :1]).all()):  # Mask2Former hands each head of the dense model the same one
                return maps[:, :1]
        raise ValueError(
            f"attn_mask has {len(mask)} maps for a batch of {batch} and {self.num_heads} heads: some of its heads "
            "were removed, so give one map for all heads."
        )


def run_plainly(module: nn.MultiheadAttention) -> None:
    """Let a multi-head attention run in plain operations, in place."""
    module.__class__ = PlainHeads
    module._qkv_same_embed_dim = False  # so that `nn.TransformerEncoderLayer` runs it, rather than a kernel of its own


@contextmanager
def running_plainly(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let those that are PyTorch's multi-head attentions run in plain operations; undone on exit."""
    changed = [module for module in modules if type(module) is nn.MultiheadAttention]
    before = [module._qkv_same_embed_dim for module in changed]
    try:
        for module in changed:
            run_plainly(module)
        yield
    finally:
        for module, same in zip(changed, before, strict=True):
            module.__class__ = nn.MultiheadAttention
            module._qkv_same_embed_dim = same


def _added(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask as what is added to logits."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)
