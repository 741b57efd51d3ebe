"""The digest of a pruned model: what ties the entry in its config and the tensors on disk to each other.

It has two halves, each a SHA-256: one over the entry (structure, merging schedule and all that a loader sets), one over
names, types and shapes of all tensors. Both are noted in the entry and in the metadata of every file of weights, and
compared on loading. Only headers are read for it: what numbers the tensors hold is verified by `listing.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..files.model_files import are_weights
from ..files.tensor_headers import Header, forms_in, hashed, read_headers, tensors_digest
from .listing import changes

logger = logging.get_logger(__name__)

STRUCTURE = "optin_structure"  # the first half in the metadata of a file
TENSORS = "optin_tensors"
PENDING = "0" * 64  # in the place of the second one while files are written
_NOT_TIED = ("quant_method", "how_to_load", "transformers", "digest")  # words, and the version that saved the model


def structure_digest(entry: Mapping[str, Any]) -> str:
    """The digest of an entry: of all that is cut, merged or set by it. What is empty does not count."""
    return hashed({name: each for name, each in entry.items() if name not in _NOT_TIED and each})


def check_digest(entry: Mapping[str, Any], files: Sequence[Path] | None, place: str) -> bool:
    """Raise if an entry and the weights beside it are not those that were saved together; warn if nobody can tell.

    Args:
        entry: the JSON form of what was read (`OptinStructureConfig`).
        files: the files of weights; `None` if they are in memory.
        place: the name of the file that the entry was read from.

    Returns:
        Whether names, types and shapes of the tensors are known to be those that were saved.

    Raises:
        OSError: a file cannot be read.
        ValueError: what does not fit, in which file, and what to do.
    """
    noted, found = entry.get("digest") or {}, structure_digest(entry)
    if noted and noted["structure"] != found:
        raise ValueError(
            f"{place} was changed since the model was saved: what it says was cut or merged does not have the digest "
            f"that it notes. {_ONE_SAVING}"
        )
    if not files:
        return False
    files = list(map(Path, files))
    if others := [file.name for file in files if file.suffix != ".safetensors"]:
        if noted:
            raise ValueError(
                f"{place} has a digest of the weights that were saved, in safetensors, and {others[0]} is no such "
                f"file. {_ONE_SAVING} {_ON_PURPOSE.format(place=place)}"
            )
        return False
    headers = read_headers(files)
    for file, header in headers.items():
        if header.notes.get(STRUCTURE, found) != found:
            raise ValueError(
                f"{place} does not say how the model in {file.name} was pruned: one of them was changed, or is of "
                f"another pruning. {_ONE_SAVING}"
            )
    in_place = all(are_weights(file.name) for file in files)  # of a variant, the file itself has the only digest
    compared = _check_tensors(noted.get("tensors") if in_place else None, headers, place)
    if not any(STRUCTURE in header.notes for header in headers.values()):
        why = "resharded or converted by hand" if noted else "saved by an earlier version, or by hand"
        logger.warning(
            f"the weights in {files[0].parent} have no digest, as they were {why}: nobody can tell whether they are "
            f"those of {place}. Saved again (save_pretrained), they have one."
        )
    return compared


def _check_tensors(noted: str | None, headers: Mapping[Path, Header], place: str) -> bool:
    forms = forms_in(headers)
    found = tensors_digest(forms)
    marks = {place: noted} | {file.name: header.notes.get(TENSORS) for file, header in headers.items()}
    for file, digest in marks.items():
        if digest in (None, PENDING, found):
            continue
        what = changes(next(iter(headers)).parent, forms, digest)
        raise ValueError(
            f"the weights in {', '.join(each.name for each in headers)} are not those that {file} notes: {what}. "
            f"{_ONE_SAVING} {_ON_PURPOSE.format(place=place) if file == place else ''}".rstrip()
        )
    return found in marks.values()


_ONE_SAVING = (
    "Take the files of one saving (download all of them again), and make changes on the loaded model, e.g. "
    "from_pretrained(..., dtype=...).save_pretrained(...)."
)
_ON_PURPOSE = (
    "If the weights were converted by hand and are meant, delete `digest` in {place}: then nothing is compared."
)
