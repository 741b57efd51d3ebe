"""Folders of saved pruned models: what they hold, figures that are added later, and their way to the Hub."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from huggingface_hub import CommitInfo, ModelCard
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging

from ..files.exchange import NOTE_FILE, check_whole
from ..files.folders import atomic_folder
from ..files.json_files import read_object
from ..files.model_files import PICTURES, are_weights, left_over
from ..files.tensor_headers import DTYPE_NAMES, read_header
from ..plain_modules.structure_file import WEIGHTS_FILE, read_structure
from ..report import REPORT_FILE, PruningReport, commit_title
from ..scoring import SCORES_FOLDER, Scores
from ..storage.entry import METHOD, STRUCTURE_FILE
from ..storage.loading import load_processor, model_class
from ..storage.tasks import named_by
from .card import card_or_none, decoded, model_card, own_card, own_text, retitled
from .hub import CARD_FILE, check_push, files_in, push

logger = logging.get_logger(__name__)


def read_config(folder: str | os.PathLike) -> dict:
    """The `config.json` of a saved pruned model; of a plain module, what its structure file says in the same form.

    Raises:
        FileNotFoundError: the folder holds no model, or a save to it was killed on the way.
        ValueError: the model is dense, or its `config.json` is damaged.
    """
    check_whole(folder)
    if Path(folder, STRUCTURE_FILE).is_file():
        pruned = read_structure(Path(folder, STRUCTURE_FILE))
        return {"architectures": [pruned.kind], "quantization_config": pruned.entry}
    file = Path(folder, "config.json")
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no model: config.json is missing.")
    config = read_object(file)
    entry = config.get("quantization_config") or {}
    if not isinstance(entry, dict):
        raise ValueError(f"{file} is damaged: its quantization_config must be an object, and is {entry!r:.40}.")
    free = entry.get("quant_method") == METHOD
    if not free and read_report(folder) is None:  # with layout="uniform", only the report tells
        raise ValueError(
            f"{folder} was not pruned with optimum-optin: its config.json names no structure, and there is no "
            f"{REPORT_FILE}."
        )
    return config


def read_report(folder: str | os.PathLike) -> PruningReport | None:
    """The report in a saved model's folder; `None` if there is none.

    Raises:
        ValueError: see `PruningReport.load`.
    """
    check_whole(folder)
    return PruningReport.load(folder) if Path(folder, REPORT_FILE).is_file() else None


def write_report(folder: str | os.PathLike, report: PruningReport, pictures: Mapping[str, bytes] | None = None) -> None:
    """Write a report with more figures into a saved model's folder, and bring the card up to date; all or nothing.

    A card that cannot be read stays as it is.

    Args:
        folder: the folder.
        report: the report.
        pictures: files that the card shows, name -> content, beside those that are there.
    """
    folder, pictures = Path(folder).resolve(), pictures or {}
    card = card_or_none(
        lambda existing: _card(folder, report, existing, name=folder.name, pictures=pictures),
        lambda: own_card(folder),
        name=folder.name,
    )
    with atomic_folder(folder) as draft:
        report.save(draft)
        for name, content in pictures.items():
            (draft / name).write_bytes(content)
        if card is not None:
            card.save(draft / CARD_FILE)


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    scores: str | os.PathLike | None = None,
) -> CommitInfo:
    """Upload a saved pruned model to the Hub in one commit: its files, and a card for that address.

    Args:
        folder: folder of a pruned model.
        repo_id: `"user/name"`; created if missing. Text that somebody wrote into its card stays, unless the
            folder's card has text of its own.
        private: make the repository private, if it is created.
        token: Hub token; `None` takes the one of `hf auth login` or of HF_TOKEN.
        revision: branch to push to, created from `main` if missing; `None` takes `main`.
        commit_message: the commit's title.
        create_pr: open a pull request instead of committing.
        scores: folder of saved scores to upload as well.

    Raises:
        FileNotFoundError: no model in the folder, no weights, or no scores.
        ValueError: the model is not pruned, `repo_id` is no name of a repository, or a pull request is to go to a
            branch.
        OfflineModeIsEnabled, LocalTokenNotFoundError, ConnectionError, HfHubHTTPError: see `OptinPruner.push_to_hub`.
    """
    folder = Path(folder).resolve()
    read_config(folder)
    check_push(repo_id, token=token, revision=revision, create_pr=create_pr)
    files: dict[str, Path | bytes] = {**files_in(folder)}
    files.pop(NOTE_FILE, None)
    if not any(map(are_weights, files)):
        raise FileNotFoundError(f"{folder} holds no weights: model.safetensors is missing.")
    if others := [name for name in left_over(folder) if files.pop(name, None)]:
        logger.warning(f"not pushed, since they are not of the model that loads from {folder}: {', '.join(others)}.")
    if scores is not None:
        Scores.from_pretrained(scores)
        files |= {f"{SCORES_FOLDER}/{name}": file for name, file in files_in(Path(scores)).items()}
    report = read_report(folder)
    message = commit_message or (commit_title(report) if report else "Upload pruned model")

    def with_card(repo_id: str, there: bytes | None) -> dict[str, Path | bytes]:
        if card := report and _pushed_card(folder, report, there, repo_id, revision):
            files[CARD_FILE] = str(card).encode()
        elif CARD_FILE in files and ((there is not None and report) or not _is_readable(folder)):
            del files[CARD_FILE]
        return files

    return push(
        repo_id, with_card, private=private, token=token, revision=revision, message=message, create_pr=create_pr
    )


def _pushed_card(
    folder: Path, report: PruningReport, there: bytes | None, repo_id: str, revision: str | None
) -> ModelCard | None:
    return card_or_none(
        lambda existing: _card(folder, report, existing, name=repo_id, revision=revision),
        lambda: _card_to_push(folder, repo_id, decoded(there)),
        name=repo_id,
    )


def _is_readable(folder: Path) -> bool:
    """Whether a folder's card can be read, as the Hub's client must do to push it."""
    try:
        return own_card(folder) is not None
    except (ValueError, OSError) as error:
        logger.warning(f"the card in {folder} is not pushed: {error}")
        return False


def _card_to_push(folder: Path, repo_id: str, there: str | None) -> str | None:
    """The card to update: the folder's if a person worked on it, else the repository's, else the folder's."""
    here = own_card(folder)
    if here is None or own_text(here, folder.name):
        return here or there
    return there or retitled(here, repo_id.rpartition("/")[2])


def _card(
    folder: Path,
    report: PruningReport,
    existing: str | None,
    *,
    name: str,
    revision: str | None = None,
    pictures: Collection[str] = (),
) -> ModelCard:
    shown = {*pictures, *(each for each in PICTURES if (folder / each).is_file())}
    options = {"name": name, "revision": revision, "folder": folder, "pictures": shown, "existing": existing}
    if (folder / STRUCTURE_FILE).is_file():
        return model_card(_stand_in(folder), report, **options)
    config = AutoConfig.from_pretrained(folder)
    try:
        loader = model_class(folder, None)
    except ValueError:  # a class that is not here: the card needs only its name
        loader = AutoModel
    make = loader if issubclass(loader, PreTrainedModel) else loader.from_config
    with torch.device("meta"):  # no weights: the card needs the class and the data type
        skeleton = make(config).to(config.dtype)
    if loader is AutoModel and (name := named_by(config)):
        skeleton.__class__ = type(name, (type(skeleton),), {})
    return model_card(skeleton, report, processor=load_processor(folder), **options)


def _stand_in(folder: Path) -> nn.Module:
    """A module of the class and precision of the one in a folder, whose code is not here: a card needs no more."""
    kind = read_structure(folder / STRUCTURE_FILE).kind
    module = type(kind, (nn.Module,), {})()
    types = {form.dtype for form in read_header(folder / WEIGHTS_FILE).forms.values()}
    found = (each for each, name in DTYPE_NAMES.items() if each.is_floating_point and name in types)
    precision = next(found, torch.float32)
    module.register_parameter("weight", nn.Parameter(torch.empty(0, dtype=precision)))
    return module
