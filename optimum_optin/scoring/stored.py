"""Scores on disk: safetensors and JSON, under one checksum."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

from ..files.exchange import check_whole
from ..files.folders import atomic_folder
from ..files.json_files import read_object
from ..hub_id import is_hub_id
from .registry import Terms

logger = logging.get_logger(__name__)

TENSORS_FILE = "optin_scores.safetensors"
METADATA_FILE = "optin_scores.json"
SCORES_FOLDER = "optin_scores"  # in a repository on the Hub
_MERGES = ".tokens"  # ends a layer's name on disk
_FIELDS = {"config", "fingerprint", "tokens", "seconds"}


def write_scores(folder: str | os.PathLike, terms: Terms, merges: Terms, metadata: Mapping[str, Any]) -> None:
    """Write scores into a folder, completely or not at all.

    Args:
        folder: the folder, made if missing.
        terms: see `Scores`.
        merges: see `Scores`.
        metadata: the other fields of `Scores`, as JSON takes them: config, fingerprint, tokens, seconds.
    """
    tensors = {
        f"{term}/{key}{suffix}": score.contiguous().clone()  # a scorer's tensors may share memory
        for each, suffix in ((terms, ""), (merges, _MERGES))
        for term, by_key in each.items()
        for key, score in by_key.items()
    }
    metadata = {**metadata, "sha256": _digest(tensors, metadata)}
    with atomic_folder(folder) as draft:
        save_file(tensors, draft / TENSORS_FILE)
        (draft / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def read_scores(folder: str | os.PathLike, **options: Any) -> tuple[Terms, Terms, dict[str, Any]]:
    """Scores from a folder or a repository on the Hub.

    Args:
        folder: where they are.
        **options: revision, token and cache_dir for a repository.

    Returns:
        Terms, merges and metadata, as `write_scores` takes them.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are damaged, or were changed since they were saved.
    """
    if is_hub_id(str(folder)):
        try:
            snapshot = snapshot_download(str(folder), allow_patterns=f"{SCORES_FOLDER}/*", **options)
        except OSError as error:
            raise FileNotFoundError(f"{folder} is no folder, and cannot be read from the Hub: {error}") from error
        folder = Path(snapshot, SCORES_FOLDER)
    folder = Path(folder)
    check_whole(folder)
    for name in (TENSORS_FILE, METADATA_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no scores: {name} is missing.")
    try:
        return _read(folder)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise damaged(folder, error) from error


def damaged(folder: str | os.PathLike, error: Exception) -> ValueError:
    """The error for scores that are not as they were saved."""
    return ValueError(f"the scores in {folder} are damaged, or of another version: {error!r}.")


def _read(folder: Path) -> tuple[Terms, Terms, dict[str, Any]]:
    try:
        tensors = load_file(folder / TENSORS_FILE)
    except SafetensorError as error:  # it does not say which file
        raise ValueError(f"{TENSORS_FILE}: {error}") from error
    metadata = read_object(folder / METADATA_FILE)
    digest = metadata.pop("sha256", None)
    if digest is None:
        logger.warning(
            f"the scores in {folder} were saved by an earlier version, without a checksum: nobody can tell whether "
            "they were changed since."
        )
    elif digest != _digest(tensors, metadata):
        raise ValueError("they are not what was saved, by their checksum: score again")
    terms: Terms = {}
    merges: Terms = {}
    for name, score in tensors.items():
        if not score.is_floating_point():
            raise ValueError(f"{name} is {score.dtype}, not of floating-point numbers")
        term, key = name.split("/", 1)
        target = merges if key.endswith(_MERGES) else terms
        target.setdefault(term, {})[key.removesuffix(_MERGES)] = score
    if set(metadata) != _FIELDS:
        raise ValueError(f"{METADATA_FILE} must have {', '.join(sorted(_FIELDS))}, it has {', '.join(metadata)}")
    return terms, merges, metadata


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and values of the tensors, and over the metadata."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
