"""The listing of a model's tensors beside its weights: names, types, shapes and, if asked for, hashes of their numbers.

Nothing that loads needs it. Where a digest does not fit, it tells which tensors are not as they were; and with hashes,
`optin info --verify` compares every number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from ..files.json_files import read_object
from ..files.model_files import LISTING_FILE
from ..files.tensor_headers import Form, Header, tensors_digest

_MOST_OF_LISTING = 2**26
_FEW = 5  # tensors in an error


def write_listing(headers: Mapping[Path, Header], folder: Path, hashed: bool = False) -> None:
    """Write the listing of a model's tensors into a folder.

    Args:
        headers: file of weights -> its header.
        folder: the folder.
        hashed: read all numbers, and note a SHA-256 of those of each tensor.
    """
    hashes = tensor_hashes(headers) if hashed else {}
    lines = []
    for header in headers.values():
        for name, form in header.forms.items():
            entry = {"dtype": form.dtype, "shape": list(form.shape)}
            entry |= {"sha256": hashes[name]} if hashed else {}
            lines.append(f"{json.dumps(name)}: {json.dumps(entry)}")
    text = ",\n".join(sorted(lines))
    (folder / LISTING_FILE).write_text(f'{{"tensors": {{\n{text}\n}}}}\n', encoding="utf-8")


def changes(folder: Path, found: Mapping[str, Form], digest: str) -> str:
    """Which tensors are not as they were, in words.

    Args:
        folder: where the listing is, if there is one.
        found: the tensors that there are now.
        digest: that of the tensors that there were; a listing with another is of another saving.
    """
    try:
        listed = {name: form for name, (form, _) in read_listing(folder).items()}
    except (OSError, ValueError):
        listed = {}
    known = tensors_digest(listed) == digest
    return in_words(differences(listed, found)) if known else "names, types or shapes of tensors are others"


def read_listing(folder: Path) -> dict[str, tuple[Form, str | None]]:
    """The tensors that a folder's listing names: their forms and, if they were hashed, the hashes.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged; names it.
    """
    file = folder / LISTING_FILE
    data = read_object(file, _MOST_OF_LISTING)
    try:
        return {
            name: (Form(each["dtype"], tuple(each["shape"])), each.get("sha256"))
            for name, each in data["tensors"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged: {error!r}.") from error


def tensor_hashes(headers: Mapping[Path, Header]) -> dict[str, str]:
    """SHA-256 of the numbers of each tensor, as they are on disk: name -> hash."""
    found = {}
    for file, header in headers.items():
        with open(file, "rb") as opened:
            for name, (start, stop) in sorted(header.places.items(), key=lambda each: each[1]):
                opened.seek(start)
                found[name] = _hash_of(opened, stop - start)
    return found


def differences(listed: Mapping[str, Form], found: Mapping[str, Form]) -> list[str]:
    """How tensors differ from those of a listing in names, types and shapes, in words; names are quoted."""
    said = [f"{name!r:.120} is missing" for name in listed if name not in found]
    said += [f"{name!r:.120} was not there" for name in found if name not in listed]
    both = (name for name in listed if name in found and listed[name] != found[name])
    return said + [f"{name!r:.120} is {found[name]!s:.80} and was {listed[name]!s:.80}" for name in both]


def in_words(said: Sequence[str]) -> str:
    """The first of some findings, and how many more there are."""
    more = f" and {len(said) - _FEW} more" if len(said) > _FEW else ""
    return f"{'; '.join(said[:_FEW])}{more}"


def _hash_of(opened: BinaryIO, count: int) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(2**20))
    while count:
        read = opened.readinto(buffer[: min(count, len(buffer))])
        if not read:
            raise ValueError(f"{opened.name} ends before its last tensor does.")
        digest.update(buffer[:read])
        count -= read
    return digest.hexdigest()
