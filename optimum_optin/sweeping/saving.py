"""Saving a sweep: its table, its picture and its models, all of them or the one that is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn
from transformers.utils import logging

from ..files.folders import NotSavedError
from ..models.identity import is_of_transformers
from ..report import PruningReport
from ..running.processes import is_main, wait
from ..storage.entry import noted_in
from ..storage.integrity import check_rebuilt
from .kept import Kept
from .points import SweepPoint
from .sweep import Sweep

logger = logging.get_logger(__name__)


def check_reloadable(model: nn.Module) -> None:
    """Raise if what is made of a model could not be loaded again.

    Raises:
        ValueError: says why.
    """
    if is_of_transformers(model):
        check_rebuilt(model)
    elif noted_in(model) is not None:
        raise ValueError(
            f"this {type(model).__name__} was pruned before, and a sweep loads what it saves by a dense module: sweep "
            "that one, or prune this one to each budget."
        )


def taken(sweep: Sweep, max_drop: float) -> list[SweepPoint]:
    """The smallest model that loses no more than it may, alone; none, with a word, if there is none."""
    try:
        return [sweep.smallest(max_drop)]
    except ValueError as error:
        logger.warning(f"no model is taken: {error}")
        return []


def save_sweep(
    sweep: Sweep,
    chosen: Sequence[SweepPoint],
    kept: Kept,
    folder: Path,
    write: Callable[[Path, nn.Module, PruningReport], None],
    *,
    pictures: Mapping[str, bytes],
) -> Sweep:
    """Save a sweep and some of its models, one after the other; of several processes, the main one does it.

    Args:
        sweep: the sweep.
        chosen: the points whose models are saved.
        kept: where the models are.
        folder: the folder.
        write: saves a model into a folder, completely or not at all.
        pictures: the sweep's.

    Returns:
        The sweep, whose points say where their models are.

    Raises:
        NotSavedError: something could not be saved; the table was, if it could be.
    """
    places = {point.name: folder / point.name for point in chosen}
    points = [replace(each, folder=str(places[each.name])) if each.name in places else each for each in sweep.points]
    found = replace(sweep, points=points)
    if is_main():
        try:
            sweep.save(folder, pictures)
            for name, place in places.items():
                write(place, kept.load(name), kept.report(name))
            found.save(folder, {})  # now that the models are there
        except Exception as error:
            raise NotSavedError(f"the sweep could not be saved to {folder} as a whole: {error}") from error
    wait()
    return found
