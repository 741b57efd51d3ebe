"""Measuring language models: how well they predict running text, and what they write."""

from .continuations import compare_continuations
from .perplexity import Perplexity

__all__ = ["Perplexity", "compare_continuations"]
