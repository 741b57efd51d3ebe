"""Folders written completely or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_folder(path: str | os.PathLike) -> Path:
    """The path as a folder that may be written.

    Raises:
        NotADirectoryError: it, or a parent, is a file.
    """
    path = Path(path)
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(f"cannot save to {path}: {place} is a file; give a folder.")
    return path


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder beside `path` whose files move into `path` if the block succeeds.

    Files of an existing folder that the block did not write stay. On an error or an interruption
    nothing of `path` changes.

    Raises:
        NotADirectoryError: see `check_folder`.
    """
    path = check_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield draft
        if path.exists():
            for file in sorted(draft.rglob("*")):
                target = path / file.relative_to(draft)
                if file.is_dir():
                    target.mkdir(exist_ok=True)
                else:
                    os.replace(file, target)
        else:
            draft.chmod(0o777 & ~_umask())
            os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
