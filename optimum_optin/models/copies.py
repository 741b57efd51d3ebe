"""Working copies of what the user handed in, since tokenizers and processors keep traces of calls and saves."""

from __future__ import annotations

import copy
from typing import TypeVar

from transformers.utils import logging

Part = TypeVar("Part")

logger = logging.get_logger(__name__)


def working_copy(part: Part) -> Part:
    """A copy of a tokenizer, processor or config; the object itself if it cannot be copied."""
    try:
        return copy.deepcopy(part)
    except Exception:
        logger.debug(f"{type(part).__name__} is worked with without a copy of it")
        return part
