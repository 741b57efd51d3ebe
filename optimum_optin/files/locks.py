"""Locks on open files and folders, which the system releases when the process that holds them ends, however it ends."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: processes are not kept apart
    fcntl = None


def take(handle: int) -> bool | None:
    """Lock an open file or folder against other processes, and other handles of this one, without waiting.

    Returns:
        Whether it is locked; `False` if somebody else holds it, `None` where there are no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def release(handle: int) -> None:
    """Unlock and close a handle that `take` was called with."""
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_UN)  # a forked process may have the handle, too
    os.close(handle)


def open_folder(path: str | os.PathLike) -> int | None:
    """A handle of a folder, which is no link to one; `None` on systems where folders cannot be opened.

    Raises:
        OSError: it is not there, is no folder, or may not be read.
    """
    if fcntl is None:
        return None
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def is_taken(path: Path) -> bool:
    """Whether somebody holds a folder at this moment."""
    try:
        handle = open_folder(path)
    except OSError:
        return False
    if handle is None:
        return False
    try:
        return take(handle) is False
    finally:
        release(handle)
