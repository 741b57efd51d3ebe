"""Folders written completely or not at all."""

from __future__ import annotations

import os
import re
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

    An error or an interruption inside the block changes nothing of `path`. Files that an existing
    folder holds and the block did not write stay, but for weights and code of an earlier save. The change-over
    itself is two renames; killed between them, the earlier folder is beside `path` as `.name-old-*`. Where
    the folder must stay in place (a mount point, the working directory), files are moved one by one,
    the configuration last.

    Raises:
        NotADirectoryError, PermissionError: see `check_folder`.
    """
    path = check_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    in_place = path.is_dir() and (
        path.is_mount() or Path.cwd().is_relative_to(path) or not os.access(path.parent, os.W_OK)
    )
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
    stale = _stale(draft, path)
    shutil.copytree(
        path,
        draft,
        symlinks=True,
        dirs_exist_ok=True,
        # copytree would write over what the block wrote, so that is left out with the stale files.
        ignore=lambda folder, names: [
            name
            for name in names
            if Path(folder, name) in stale or _is_file(draft / Path(folder).relative_to(path) / name)
        ],
    )
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
    stale = _stale(draft, path)
    for file in sorted(draft.rglob("*"), key=lambda file: (not file.is_dir(), file.name == "config.json", file)):
        target = path / file.relative_to(draft)
        if file.is_dir():
            target.mkdir(exist_ok=True)
        else:
            os.replace(file, target)
    for file in stale:
        file.unlink()


def _stale(draft: Path, path: Path) -> set[Path]:
    """What `path` holds of a model that the draft replaces, under names that the draft does not use."""
    if not any(draft.glob("model*.safetensors")):
        return set()
    return {file for file in path.iterdir() if MODEL_FILES.fullmatch(file.name) and not _is_file(draft / file.name)}


WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
MODEL_FILES = re.compile(WEIGHTS.pattern + r"|modeling_optin\.py")  # without config.json, which every model has


def _is_file(path: Path) -> bool:
    return path.is_symlink() or path.is_file()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
