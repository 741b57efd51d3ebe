"""Merging of similar tokens by bipartite soft matching, written from the ToMe paper (Bolya et al. 2023, Sec. 3).

Everything here takes tensors. A matching is one index per token: where it goes in the shorter sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def most_merges(tokens: int, protected: int) -> int:
    """How many of `tokens` one matching can merge away: every second one that is not protected."""
    return max(tokens - protected, 0) // 2


def match_tokens(keys: Tensor, merges: int, protected: int = 0) -> Tensor:
    """Match the most similar pairs of two sets: every second token against those between.

    Args:
        keys: what tokens are compared by, shape (batch, tokens, features).
        merges: pairs to merge, at most `most_merges`.
        protected: how many tokens at the beginning (the class token and the like) stay as they are.

    Returns:
        The place of every token among the merged ones, shape (batch, tokens): protected tokens first, then those that
        look for a partner and were not merged, then the partners.
    """
    batch, tokens, _ = keys.shape
    free = normalize(keys[:, protected:], dim=-1)
    partners, others = free[:, ::2], free[:, 1::2]  # each of the others looks for a partner
    similarity, partner = (others @ partners.transpose(1, 2)).max(-1)
    chosen = similarity.topk(merges).indices
    merged = torch.zeros_like(similarity, dtype=torch.bool).scatter(1, chosen, True)
    own_place = protected + (~merged).cumsum(-1) - 1
    first_partner = protected + others.shape[1] - merges
    matching = torch.empty(batch, tokens, dtype=torch.long, device=keys.device)
    matching[:, :protected] = torch.arange(protected, device=keys.device)
    matching[:, protected::2] = torch.arange(partners.shape[1], device=keys.device) + first_partner
    matching[:, protected + 1 :: 2] = torch.where(merged, first_partner + partner, own_place)
    return matching


def merge_tokens(hidden: Tensor, sizes: Tensor, matching: Tensor, merges: int) -> tuple[Tensor, Tensor]:
    """Average the tokens that were matched, each weighted by how many tokens it stands for.

    Args:
        hidden: tokens, shape (batch, tokens, channels).
        sizes: how many tokens of the first layer each of them stands for, shape (batch, tokens).
        matching: from `match_tokens`.
        merges: how many pairs the matching merges.

    Returns:
        Merged tokens, shape (batch, tokens - merges, channels), and their sizes, shape (batch, tokens - merges).
    """
    batch, tokens, channels = hidden.shape
    rows = _rows(matching, tokens - merges)
    merged_sizes = sizes.new_zeros(batch * (tokens - merges)).index_add(0, rows, sizes.flatten())
    share = (sizes.flatten() / merged_sizes[rows]).to(hidden.dtype)
    merged = hidden.new_zeros(batch * (tokens - merges), channels)
    merged = merged.index_add(0, rows, hidden.flatten(0, 1) * share.unsqueeze(-1))
    return merged.view(batch, tokens - merges, channels), merged_sizes.view(batch, tokens - merges)


def take_tokens(hidden: Tensor, places: Tensor) -> Tensor:
    """Take the tokens at the given places of each sample.

    Args:
        hidden: shape (batch, tokens, channels).
        places: shape (batch, places).

    Returns:
        Shape (batch, places, channels).
    """
    return hidden.flatten(0, 1)[_rows(places, hidden.shape[1])].view(*places.shape, hidden.shape[-1])


def _rows(places: Tensor, tokens: int) -> Tensor:
    """Places in each sample as rows of all samples, shape (batch * places,): several times faster to index on a CPU."""
    first = torch.arange(places.shape[0], device=places.device) * tokens
    return (places + first.unsqueeze(-1)).flatten()
