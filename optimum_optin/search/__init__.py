"""What a budget is spent on."""

from .masks import check_budget, check_kept, search, search_uniform

__all__ = [
    "check_budget",
    "check_kept",
    "search",
    "search_uniform",
]
