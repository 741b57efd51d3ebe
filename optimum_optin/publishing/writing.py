"""Writing a pruned model into a folder, with its processor, companions, report and card."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import logging

from ..files.held import temporary_folder
from ..models.copies import working_copy
from ..models.identity import device_of, is_of_transformers
from ..plain_modules.loading import load_pruned
from ..plain_modules.saving import reloaded_module, save_module
from ..report import PruningReport
from ..storage.integrity import check_rebuilt, reloaded, save_model
from ..storage.tasks import class_of
from .card import card_or_none, model_card
from .hub import CARD_FILE
from .remote_code import check_remote_code, write_remote_code

logger = logging.get_logger(__name__)


def write_pruned(
    folder: Path,
    model: nn.Module,
    report: PruningReport,
    processor: Any,
    *,
    dense: nn.Module,
    name: str,
    read_card: Callable[[], str | None],
    copy_companions: Callable[[], None],
    pictures: Mapping[str, bytes] | None = None,
    revision: str | None = None,
    remote_code: bool = False,
) -> None:
    """Write the model, its processor, its companions, the report and the card with its pictures.

    Args:
        folder: an empty folder.
        model: the pruned model.
        report: its report.
        processor: its tokenizer or the like; `None` for none. One that cannot save itself, as a function, is not saved.
        dense: the model that it was made from.
        name: what the card tells users to load.
        read_card: reads the card to update; `None` if there is none.
        copy_companions: copies the dense model's companions into the folder.
        pictures: files that the card shows, name -> content.
        revision: the branch that the card names.
        remote_code: write `modeling_optin.py`, too.

    Raises:
        ValueError: the model would not load as it is, or there is nothing for remote code to rebuild.
    """
    if remote_code:
        check_remote_code(model)
    save_weights(model, folder, dense)
    if remote_code:
        write_remote_code(folder)
    if is_of_transformers(model) and class_of(model) is None and not model.is_remote_code():
        kind = type(model).__name__
        logger.warning(
            f"the saved model is a {kind}, a class of your own: load it with {kind}.from_pretrained. Auto classes "
            "would make another class of it, unless its code is there, which "
            f"{kind}.register_for_auto_class('AutoModel...') before saving brings along."
        )
    if is_saved_part(processor):
        save_part(processor, folder)
    copy_companions()
    report.save(folder)
    for picture, content in (pictures or {}).items():
        (folder / picture).write_bytes(content)
    shown = {"processor": processor, "folder": folder, "pictures": pictures or ()}
    make = partial(model_card, model, report, name=name, revision=revision, **shown)
    card = card_or_none(lambda existing: make(existing=existing), read_card, name=name)
    if card is not None:
        card.save(folder / CARD_FILE)


def check_parts(model: nn.Module, processor: Any) -> None:
    """Raise if a part of a model other than its weights cannot be saved, which is found by saving it.

    Raises:
        ValueError: names the part.
    """
    parts = {"processor": processor if is_of_transformers(model) or is_saved_part(processor) else None}
    if is_of_transformers(model):
        generation = model.generation_config if model.can_generate() else None
        parts = {"configuration": model.config, "generation configuration": generation, **parts}
    with temporary_folder() as place:
        for name, part in parts.items():
            try:
                if part is not None:
                    save_part(part, place)
            except Exception as error:
                raise ValueError(
                    f"the {name} cannot be saved, and so the pruned model could not be: {error!r:.300}"
                ) from error


def saved_and_loaded(model: nn.Module, dense: nn.Module) -> nn.Module:
    """The model as a user gets it: saved and loaded again, on the same device, in evaluation mode."""
    if not is_of_transformers(model):
        return reloaded_module(model, dense)
    check_rebuilt(model)
    with temporary_folder() as folder:
        model.save_pretrained(folder)
        loaded = reloaded(model, folder)
    return loaded.to(model.device).eval()


def save_weights(model: nn.Module, folder: Path, dense: nn.Module) -> None:
    """Write a pruned model alone into an empty folder, and make sure that it loads as the same model.

    Raises:
        ValueError: it would not.
    """
    if is_of_transformers(model):
        save_model(model, folder)
    else:
        save_module(model, folder, dense)


def loaded_like(dense: nn.Module, folder: Path) -> nn.Module:
    """The model that `save_weights` wrote, on the device of the dense one that it was made from, in evaluation mode.

    Args:
        dense: the dense model; of plain modules, one that was not pruned before.
        folder: the folder.
    """
    loaded = reloaded(dense, folder) if is_of_transformers(dense) else load_pruned(dense, folder)
    return loaded.to(device_of(dense)).eval()


def is_saved_part(part: Any) -> bool:
    """Whether there is a part that saves itself; a function that makes tensors of images is code, and does not."""
    return part is not None and (hasattr(part, "save_pretrained") or not callable(part))


def save_part(part: Any, folder: str | os.PathLike) -> None:
    """Save a copy of a part: the part itself would note that it was saved (a processor does, in its tokenizer)."""
    working_copy(part).save_pretrained(folder)
