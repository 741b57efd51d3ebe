"""Verification of a saved folder: every tensor is compared with what was noted when it was saved, numbers by hash."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..files.model_files import LISTING_FILE, weights_in
from ..files.tensor_headers import forms_in, read_headers
from .digest import STRUCTURE, check_digest
from .listing import differences, in_words, read_listing, tensor_hashes


def verify(folder: Path, entry: Mapping[str, Any] | None, place: str) -> int:
    """Read all weights of a folder, and compare them with the digest and the listing beside them.

    Args:
        folder: the folder of a pruned model.
        entry: how it was pruned, as for `check_digest`; `None` with layout="uniform", which leaves no entry.
        place: the name of the file that the entry was read from.

    Returns:
        How many tensors were compared.

    Raises:
        FileNotFoundError: there are no weights, or no listing.
        ValueError: something is not what was saved, or was not noted when it was; names it.
    """
    files = weights_in(folder)
    if absent := [file.name for file in files or [folder / "model.safetensors"] if not file.is_file()]:
        raise FileNotFoundError(f"{folder} holds no {', '.join(absent)}.")
    if entry is not None:
        if not entry.get("digest"):
            raise ValueError(
                f"{folder} cannot be verified, as {place} has no digest: it was saved by an earlier version, or by "
                "hand. Load it, and save it with OptinPruner.save_pretrained."
            )
        check_digest(entry, files, place)
    headers = read_headers(files)
    if entry is None and (tied := [file.name for file, header in headers.items() if STRUCTURE in header.notes]):
        raise ValueError(
            f"{place} does not say how the model in {tied[0]} was pruned, and did when it was saved: its "
            "quantization_config is gone. Download it again."
        )
    try:
        listed = read_listing(folder)
    except FileNotFoundError:
        listed = {}
    if not listed or any(digest is None for _, digest in listed.values()):
        raise FileNotFoundError(
            f"{folder} cannot be verified, as it has no {LISTING_FILE} with hashes: OptinPruner.save_pretrained and "
            "push_to_hub write it, and a model's own save_pretrained leaves the hashes out."
        )
    forms, found = forms_in(headers), tensor_hashes(headers)
    said = differences({name: form for name, (form, _) in listed.items()}, forms)
    changed = [name for name, (form, digest) in listed.items() if forms.get(name) == form and found[name] != digest]
    paths = {name: file for file, header in headers.items() for name in header.forms}
    said += _changes({name: paths[name] for name in changed})
    if said:
        raise ValueError(
            f"the weights in {folder} are not those that {LISTING_FILE} lists: {in_words(said)}. Download them again; "
            "if the model was meant to change, it was not saved by this package, which writes the listing anew."
        )
    return len(found)


def _changes(changed: Mapping[str, Path]) -> Iterator[str]:
    for name, file in changed.items():
        with safe_open(file, framework="pt") as weights:
            tensor = weights.get_tensor(name)
        broken = tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all())
        yield f"{name!r:.120} has other numbers{', some of them NaN or infinite' if broken else ''}"
