"""Rescue of results that cannot be saved where they were to be, so that hours of work are not lost."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from ..files.folders import NotSavedError, atomic_folder
from ..report import PruningReport
from ..storage.integrity import save_model
from .pruned_folders import write_report
from .writing import save_part

logger = logging.get_logger(__name__)


def save_somewhere(save: Callable[[str], None], output: str) -> str:
    """Save to a folder, or else beside it, or else to the temporary directory.

    Args:
        save: function that saves to a folder, completely or not at all.
        output: the folder that the user asked for.

    Returns:
        The folder that was saved to; if it is not the one asked for, `check_place` raises.

    Raises:
        NotSavedError: nothing could be saved anywhere.
    """
    try:
        save(output)
        return output
    except Exception as error:
        first = error
    logger.warning(f"cannot save to {output}: {first}")
    for place in _places(output):
        try:
            save(str(place))
            logger.warning(f"saved to {place} instead")
            return str(place)
        except Exception as error:
            logger.warning(f"cannot save to {place} either: {error}")
    raise NotSavedError(f"the result could be saved nowhere, not to {output}: {first}") from first


def save_or_none(save: Callable[[str], None], output: str) -> str | None:
    """As `save_somewhere`, but return `None` if nothing could be saved anywhere."""
    try:
        return save_somewhere(save, output)
    except NotSavedError:
        return None


def save_bare(model: PreTrainedModel, processor: Any, folder: str) -> None:
    """Save a pruned model alone, without report and card, with its processor if that can be saved."""
    with atomic_folder(folder) as draft:
        save_model(model, draft)
        try:
            if processor is not None:
                save_part(processor, draft)
        except Exception as error:
            logger.warning(f"the processor is not saved with the model: {error}")


def check_place(place: str, output: str, result: tuple[dict, str]) -> tuple[dict, str]:
    """Return a command's result if it was saved where the user asked.

    Raises:
        NotSavedError: it was saved elsewhere; the result is printed all the same.
    """
    if place != output:
        raise NotSavedError(f"could not save to {output}; the result was saved to {place} instead.", result)
    return result


def note_figures(
    folder: str, report: PruningReport, result: tuple[dict, str], pictures: Mapping[str, bytes] | None = None
) -> None:
    """Write a report with more figures into a pruned folder, and pictures for its card.

    Raises:
        NotSavedError: the report could not be written; the result is printed all the same.
    """
    try:
        write_report(folder, report, pictures)
    except Exception as error:
        raise NotSavedError(f"the figures could not be noted in {folder}: {error}", result) from error


def _places(output: str) -> Iterator[Path]:
    name = os.fsencode(os.path.basename(output))[:200].decode(errors="ignore")  # with a number, it may get too long
    with suppress(OSError, ValueError):  # the working directory is gone, or the root was given
        path = Path(os.path.abspath(output))
        beside = (path.with_name(f"{name or path.name}-{number}") for number in range(1, 100))
        yield from islice((place for place in beside if not os.path.lexists(place)), 1)
    with suppress(OSError):  # no temporary directory either; or something was saved
        last = Path(tempfile.mkdtemp(prefix="optin-"))
        yield last / (name or "output")
        last.rmdir()
