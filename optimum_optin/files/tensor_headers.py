"""Headers of safetensors files: names, types and shapes of tensors, and what is noted beside them; no number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls types: those of weights, most usual first, and then others."""

_BEFORE_NOTES = '{"__metadata__":'
_MOST_OF_HEADER = 100_000_000  # of a header, as safetensors has it


class Form(NamedTuple):
    """What a tensor is like.

    Args:
        dtype: its type, as safetensors calls it (`DTYPE_NAMES`).
        shape: its shape.
    """

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}"


class Header(NamedTuple):
    """What the header of a file says.

    Args:
        forms: name of each tensor -> its form.
        places: name of each tensor -> where its bytes begin and end in the file.
        notes: the metadata.
    """

    forms: dict[str, Form]
    places: dict[str, tuple[int, int]]
    notes: dict[str, str]


def read_header(file: Path) -> Header:
    """The header of a safetensors file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged; names it.
    """
    try:
        size = file.stat().st_size
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(size - 8, _MOST_OF_HEADER):
                raise ValueError(f"it has {size:,} bytes, and a header of {length:,}")
            found = json.loads(opened.read(length))
        notes, forms, places = found.pop("__metadata__", {}), {}, {}
        for name, each in found.items():
            start, stop = each["data_offsets"]
            forms[name] = Form(each["dtype"], tuple(each["shape"]))
            places[name] = 8 + length + start, 8 + length + stop
            if not _fits(forms[name], places[name], size):
                raise ValueError(f"{name} cannot be {each!r:.80}")
        if not all(isinstance(each, str) for each in notes.values()):
            raise ValueError("its metadata are no texts")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"the weights in {file} are damaged: {error}.") from error
    return Header(forms, places, notes)


def read_headers(files: Iterable[Path]) -> dict[Path, Header]:
    """The headers of the files, the shards of one model.

    Raises:
        OSError: one cannot be read.
        ValueError: one is damaged, or two have a tensor of the same name; names it.
    """
    headers, seen = {file: read_header(file) for file in files}, {}
    for file, header in headers.items():
        for name in header.forms:
            if seen.setdefault(name, file) != file:
                raise ValueError(f"the weights in {file} are damaged: {name} is in {seen[name].name} as well.")
    return headers


def forms_in(headers: Mapping[Path, Header]) -> dict[str, Form]:
    """The tensors of all shards: name -> form."""
    return {name: form for header in headers.values() for name, form in header.forms.items()}


def tensors_digest(forms: Mapping[str, Form]) -> str:
    """The digest of names, types and shapes, in whatever files and order the tensors are."""
    return hashed(sorted((name, form.dtype, list(form.shape)) for name, form in forms.items()))


def hashed(data: Any) -> str:
    """SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_notes(file: Path, notes: Mapping[str, str]) -> None:
    """Write the metadata of a file anew, in place, in the order of names; safetensors has them in an order by chance.

    Args:
        file: the file; its tensors are not touched.
        notes: all of its metadata, which must take as many bytes as what is there.

    Raises:
        RuntimeError: they take more or fewer, or the file has none.
    """
    with open(file, "r+b") as opened:
        header = opened.read(int.from_bytes(opened.read(8), "little")).decode()
        start = len(_BEFORE_NOTES)
        _, stop = json.JSONDecoder().raw_decode(header, start) if header.startswith(_BEFORE_NOTES) else ({}, start)
        text = json.dumps(notes, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) != len(header[start:stop].encode()):
            raise RuntimeError(f"{file} has no room for metadata of {len(text)} bytes.")
        opened.seek(8 + start)
        opened.write(text)


def _fits(form: Form, place: tuple[int, int], size: int) -> bool:
    numbers = (*form.shape, *place)
    return (
        isinstance(form.dtype, str)
        and all(type(each) is int for each in numbers)
        and (min(numbers) >= 0 and place[0] <= place[1] <= size)
    )
