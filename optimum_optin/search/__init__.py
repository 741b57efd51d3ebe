"""What to keep under a budget: mask search, trial cuts."""

from .masks import check_budget, check_kept, search, search_uniform

__all__ = [
    "check_budget",
    "check_kept",
    "search",
    "search_uniform",
]
