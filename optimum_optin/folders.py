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
        PermissionError: it, or the parent to make it in, may not be written.
    """
    path = Path(path).resolve()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"cannot save to {path}: {nearest} is a file; give a folder.")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"cannot save to {path}: {nearest} may not be written.")
    return path


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder that becomes `path` if the block succeeds.

    Files that an existing folder holds and the block did not write stay, but for weights of an
    earlier save. On an error or an interruption nothing of `path` changes.

    Raises:
        NotADirectoryError, PermissionError: see `check_folder`.
    """
    path = check_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A mount point, or the folder we stand in, must stay where it is: its files are moved one by one.
    in_place = path.is_dir() and (path.is_mount() or Path.cwd().is_relative_to(path))
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path if in_place else path.parent))
    try:
        yield draft
        draft.chmod(path.stat().st_mode if path.exists() else 0o777 & ~_umask())
        if in_place:
            _move_files(draft, path)
        elif path.exists():
            _swap(draft, path)
        else:
            draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _swap(draft: Path, path: Path) -> None:
    for file in path.rglob("*"):
        kept = draft / file.relative_to(path)
        if file.is_dir():
            kept.mkdir(exist_ok=True)
        elif not kept.exists() and not _is_stale(file, draft):
            shutil.copy2(file, kept)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent)) / path.name
    path.rename(aside)
    try:
        draft.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


def _move_files(draft: Path, path: Path) -> None:
    for file in [file for file in path.iterdir() if _is_stale(file, draft)]:
        file.unlink()
    for file in sorted(draft.rglob("*")):
        target = path / file.relative_to(draft)
        if file.is_dir():
            target.mkdir(exist_ok=True)
        else:
            os.replace(file, target)


def _is_stale(file: Path, draft: Path) -> bool:
    """Whether these are weights of a model that the draft replaces."""
    return file.name.startswith("model") and ".safetensors" in file.name and any(draft.glob("model*.safetensors"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
