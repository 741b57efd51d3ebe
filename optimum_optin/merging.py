"""Merging of similar tokens by bipartite soft matching, written from the ToMe paper (Bolya et al. 2023, Sec. 3).

Everything here takes tensors. A matching is one index per token: where it goes in the shorter sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def most_merges(tokens: int, protected: int) -> int:
    """How many of `tokens` one matching can merge away: every second one that is not protected has a partner."""
    return max(tokens - protected, 0) // 2


def match_tokens(keys: Tensor, merges: int, protected: int = 0) -> Tensor:
    """Match the most similar pairs of two sets, every second token against the ones between.

    Args:
        keys: what tokens are compared by, shape (batch, tokens, features).
        merges: pairs to merge, at most `most_merges`.
        protected: how many tokens at the beginning (class token and the like) stay as they are.

    Returns:
        The place of every token among the merged ones, shape (batch, tokens): protected tokens first, then those that
        found no place elsewhere, most similar first, then their partners.
    """
    batch, tokens, _ = keys.shape
    free = normalize(keys[:, protected:], dim=-1)
    partners, others = free[:, ::2], free[:, 1::2]  # the others look for a partner each
    similarity, partner = (others @ partners.transpose(1, 2)).max(-1)
    order = similarity.argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)  # of each token of `others`
    left = others.shape[1] - merges
    first_partner = protected + left
    place = torch.where(rank < merges, first_partner + partner, protected + rank - merges)
    places = torch.arange(partners.shape[1], device=keys.device).expand(batch, -1) + first_partner
    matching = torch.empty(batch, tokens, dtype=torch.long, device=keys.device)
    matching[:, :protected] = torch.arange(protected, device=keys.device)
    matching[:, protected::2] = places
    matching[:, protected + 1 :: 2] = place
    return matching


def merge_tokens(hidden: Tensor, sizes: Tensor, matching: Tensor, merges: int) -> tuple[Tensor, Tensor]:
    """Average the tokens that were matched, each as often as the tokens that it stands for.

    Args:
        hidden: tokens, shape (batch, tokens, channels).
        sizes: how many tokens of the beginning each of them stands for, shape (batch, tokens).
        matching: from `match_tokens`.
        merges: pairs that it merges.

    Returns:
        Merged tokens, shape (batch, tokens - merges, channels), and their sizes, shape (batch, tokens - merges).
    """
    batch, tokens, channels = hidden.shape
    merged_sizes = sizes.new_zeros(batch, tokens - merges).scatter_add(1, matching, sizes)
    share = (sizes / merged_sizes.gather(1, matching)).to(hidden.dtype)
    index = matching.unsqueeze(-1).expand(-1, -1, channels)
    merged = hidden.new_zeros(batch, tokens - merges, channels).scatter_add(1, index, hidden * share.unsqueeze(-1))
    return merged, merged_sizes
