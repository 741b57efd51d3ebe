"""Measuring language models: how well they predict running text."""

from .perplexity import Perplexity

__all__ = ["Perplexity"]
