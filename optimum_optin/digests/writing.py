"""Writing digests: into files of weights that were just saved, with a listing of their tensors beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.model_files import are_weights
from ..files.tensor_headers import Header, forms_in, read_header, tensors_digest, write_notes
from .digest import PENDING, STRUCTURE, TENSORS, structure_digest
from .listing import write_listing


def notes_for(entry: Mapping[str, Any]) -> dict[str, str]:
    """What is noted in each file while it is written: the digest of the entry, and room for that of the tensors."""
    return {STRUCTURE: structure_digest(entry), TENSORS: PENDING}


def write_digest(entry: Mapping[str, Any], folder: Path) -> dict[str, str] | None:
    """Complete what `notes_for` began in the files of a folder, and write the listing of their tensors.

    Args:
        entry: the model's entry.
        folder: where they were written.

    Returns:
        What is to be noted in the entry on disk; `None` if there are no such files, as of weights in another format.
    """
    headers: dict[Path, Header] = {}
    for file in sorted(folder.glob("*.safetensors")):
        header = read_header(file)
        if header.notes.get(TENSORS) == PENDING:
            headers[file] = header
    if not headers:
        return None
    write_listing(headers, folder)
    tensors = tensors_digest(forms_in(headers))
    for file, header in headers.items():
        write_notes(file, header.notes | {TENSORS: tensors})
    own = all(are_weights(file.name) for file in headers)  # a variant is not what the config tells of
    return {"structure": structure_digest(entry)} | ({"tensors": tensors} if own else {})
