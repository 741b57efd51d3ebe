"""A scorer that draws at random: the baseline that every other must beat."""

import torch

from optimum_optin import register_scorer
from optimum_optin.pricing.macs import cost_tables


@register_scorer("random")
def score_random(model, groups, calibration, config):
    """Random numbers times the unit's price: the search goes by score per price, so heads and neurons leave alike."""
    generator = torch.Generator().manual_seed(config.seed)
    prices = {key: table[1] for key, table in cost_tables(model, groups, calibration.tokens).items()}
    draws = {group.key: torch.rand(group.units, generator=generator).double() for group in groups}
    return {"trajectory": {key: draw * prices[key] for key, draw in draws.items()}}
