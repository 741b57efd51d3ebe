"""Folders to write in for a while, held by the process that made them, so that the next finds what a killed one left.

A folder's name says which computer it is of, and a lock on it that its process lives. What no process of this computer
holds is removed, with a word; so is what another computer has not written to for a day, as a folder may be on a disk of
several. Where there are no locks, nothing is removed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transformers.utils import logging

from .locks import open_folder, release, take

logger = logging.get_logger(__name__)

TEMPORARY = "optin-temporary-"  # not `optin-`, where the commands save what they cannot save elsewhere
DAY = 24 * 3600.0  # seconds
_ATTEMPTS = 100  # while others take a new folder for one that nobody holds


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder in the system's temporary directory, deleted in the end; so are those of killed processes."""
    with held_folder(TEMPORARY, tempfile.gettempdir()) as folder:
        yield folder


@contextmanager
def held_folder(prefix: str, place: str | os.PathLike) -> Iterator[Path]:
    """An empty folder, deleted in the end; so are those of its prefix that killed processes left beside it.

    Args:
        prefix: what its name begins with.
        place: the folder to make it in.

    Raises:
        OSError: it cannot be made.
    """
    sweep(prefix, place)
    folder, handle = make_held(prefix, place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        let_go(handle)


def make_held(prefix: str, place: str | os.PathLike) -> tuple[Path, int | None]:
    """Make a folder that is held until `let_go`, or until the process ends.

    Returns:
        The folder, and the handle to let go of.
    """
    for _ in range(_ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{_host()}-", dir=place))
        try:
            handle = open_folder(folder)
        except FileNotFoundError:  # somebody swept it away before it was held
            continue
        if handle is None or (take(handle) is not False and folder.exists()):
            return folder, handle
        release(handle)
    raise FileNotFoundError(f"cannot make a folder in {place}: others delete it.")


def let_go(handle: int | None) -> None:
    """Hold a folder no longer."""
    if handle is not None:
        release(handle)


def sweep(prefix: str, place: str | os.PathLike, known: frozenset[str] | None = None) -> None:
    """Remove folders of a prefix that killed processes left in a place, and say so.

    Args:
        prefix: what their names begin with.
        place: the folder that they are in; if it cannot be read, nothing is removed.
        known: names that may be in them; what holds others is not ours. `None` allows any.
    """
    for folder in listed(prefix, place):
        with suppress(OSError):
            if known is None or known.issuperset(os.listdir(folder)):
                _remove_if_dead(folder, prefix)


def listed(prefix: str, place: str | os.PathLike) -> list[Path]:
    """Folders of this user in a place, not links to such, whose names begin so; none if it cannot be read."""
    try:
        with os.scandir(place) as entries:
            found = [Path(each.path) for each in entries if each.name.startswith(prefix) and is_own_folder(each)]
    except OSError:
        return []
    return sorted(found)


def is_elsewhere(folder: Path, prefix: str) -> bool:
    """Whether a folder of a prefix is of another computer, by its name."""
    host = folder.name[len(prefix) :].rpartition("-")[0]
    return host not in ("", _host())  # without one, it is of a version before names said it


def is_own_folder(entry: os.DirEntry) -> bool:
    """Whether this is a folder of this user: others may put links to anything into a common place."""
    with suppress(OSError):
        return entry.is_dir(follow_symlinks=False) and (
            not hasattr(os, "geteuid") or entry.stat(follow_symlinks=False).st_uid == os.geteuid()
        )
    return False


def seconds_since_written(folder: Path) -> float:
    """How long ago something in a folder was written; less than nothing if clocks differ."""
    times = [folder.lstat().st_mtime]
    for place, folders, files in os.walk(folder):
        times += [os.lstat(os.path.join(place, name)).st_mtime for name in (*folders, *files)]
    return time.time() - max(times)


def remove(folder: Path, what: str) -> None:
    """Delete a folder that is nobody's, and say so.

    Args:
        folder: the folder.
        what: whose it was.
    """
    size = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        logger.warning(f"removed what {what} had left: {folder} ({size / 1e6:.1f} MB).")


def _remove_if_dead(folder: Path, prefix: str) -> None:
    handle = open_folder(folder)
    if handle is None:
        return
    try:
        if take(handle) and (not is_elsewhere(folder, prefix) or seconds_since_written(folder) > DAY):
            remove(folder, "a process that was killed")
    finally:
        release(handle)


def _host() -> str:
    """This computer, in a few letters of which none is a hyphen."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
