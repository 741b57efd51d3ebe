"""Samples read one by one: those that cannot be are left out and named, or stop it all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger(__name__)


def read_each(
    samples: Mapping[int, Any], ready: Callable[[Any], dict[str, Tensor]], unreadable: str, kind: str = "image"
) -> list[dict[str, Tensor] | None]:
    """The inputs that `ready` makes of each image, or sample of another kind; `None` for one that cannot be read."""
    read, problems = [], []
    for row, sample in samples.items():
        try:
            if sample is None:
                raise OSError("there is none")
            made = ready(sample)
            if not all(each.isfinite().all() for each in made.values() if each.is_floating_point()):
                raise OSError("its values are empty, or NaN or infinite")
            read.append(made)
        except OSError as error:
            problems.append(f"{name_of(sample) or f'row {row}'} ({error})")
            read.append(None)
            if unreadable == "stop":
                raise ValueError(
                    f"a calibration {kind} cannot be read: {problems[0]}. Mend or remove it, or take unreadable='skip'."
                ) from error
    if len(problems) == len(samples):
        raise ValueError(f"none of the {len(samples)} calibration {kind}s can be read; the first: {problems[0]}.")
    for problem in problems:
        logger.warning(f"left out of the calibration data, as it cannot be read: {problem}.")
    if problems:
        logger.warning(f"{len(samples) - len(problems)} of {len(samples)} calibration {kind}s are left.")
    return read


def name_of(sample: Any) -> str | None:
    """The file that an image or a sound comes from; `None` if that is unknown."""
    if isinstance(sample, Mapping) and set(sample) == {"bytes", "path"}:
        return sample["path"]
    return str(sample) if isinstance(sample, (str, os.PathLike)) else getattr(sample, "filename", None)
