"""Measuring language models: how well they predict running text, and what they write."""

from .continuations import compare_continuations
from .multiple_choice import MultipleChoice
from .perplexity import Perplexity, held_out_perplexity
from .summaries import Summarization
from .translations import Translation

__all__ = [
    "MultipleChoice",
    "Perplexity",
    "Summarization",
    "Translation",
    "compare_continuations",
    "held_out_perplexity",
]
