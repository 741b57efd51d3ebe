"""Folders written completely or not at all, beside whatever else they hold.

A save first tries whether it may write, locks the folder against other savers, and exchanges files (`exchange.py`).
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .earlier import sweep_earlier
from .exchange import HIDDEN, NEW, PROBE, check_target, exchange, is_open, kind_of, recover
from .held import held_folder, let_go, make_held, sweep
from .locks import open_folder, release, take
from .model_files import is_model_file

_WRITTEN = re.compile(
    r"README\.md|(generation_|tokenizer_|preprocessor_|processor_)?config\.json|tokenizer\.json|"
    r"optin_(report|scores|structure)\.json|optin_scores\.safetensors"
)


_ATTEMPTS = 100  # while other savers make and delete the folder


class NotSavedError(RuntimeError):
    """The work is done, but its result could not be saved where it was to be.

    Args:
        message: why, and where the result is.
        result: what the command returns, if one was run; it is printed nevertheless.
    """

    def __init__(self, message: str, result: tuple[dict, str] | None = None):
        super().__init__(message)
        self.result = result


def check_folder(path: str | os.PathLike, names: Iterable[str] = ()) -> Path:
    """Check that a folder may be written, by making, renaming and deleting a file in it; return its path.

    Args:
        path: the folder, which need not be there.
        names: files to write into it, beside those of every model.

    Raises:
        NotADirectoryError: it, or a parent, is a file.
        PermissionError: it, or the parent to make it in, may not be written.
        FileExistsError: something that is not a file has the name of a file to write.
        OSError: any other reason, such as a name that is too long or a full disk.
    """
    given = path
    nearest = path = Path(path).absolute()
    try:
        path = path.resolve()
        str(path).encode()
        nearest = next(place for place in (path, *path.parents) if place.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(f"cannot save to {path}: {nearest} is a file; give a folder.")
        for attempt in range(_ATTEMPTS):
            try:
                _try_out(nearest, path.relative_to(nearest).parts)
                break
            except FileNotFoundError:  # another saver has just failed and removed its folder; or it is in /proc
                if attempt == _ATTEMPTS - 1 and nearest.is_dir():
                    raise
        with suppress(FileNotFoundError):  # another saver moves files
            if nearest == path:
                _check_names(path)
            for name in names:
                check_target(path, name)
    except OSError as error:
        if error.errno is None:  # one of ours
            raise
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PermissionError(f"cannot save to {path}: {nearest} may not be written.") from error
        raise OSError(f"cannot save to {given}: {error.strerror}; give another folder.") from error
    except UnicodeEncodeError as error:
        raise OSError(f"cannot save to {str(given)!a}: safetensors writes to paths of UTF-8 only.") from error
    except RuntimeError as error:  # a loop of links
        raise OSError(f"cannot save to {given}: {error}; give another folder.") from error
    return path


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A hidden folder to write to; its files move into `path` if the block succeeds.

    An error or an interruption, in the block or while files are moved, changes nothing of `path`. Files that `path`
    holds and the block did not write stay as they are, but for model files of an earlier save (`stale_files`). If
    the process is killed while files are moved, `path` does not load until `recover_folder` or the next save has
    finished that. What killed processes have left in `path` or beside it is deleted, with a word.

    Raises:
        NotADirectoryError, PermissionError, FileExistsError, OSError: see `check_folder`.
        BlockingIOError: somebody else is saving to it at this moment.
    """
    path = check_folder(path)
    with _locked(path):
        work, handle = make_held(HIDDEN, path)
        try:
            draft = work / NEW
            draft.mkdir()
            yield draft
            exchange(path, work)
        finally:
            if not is_open(work):
                shutil.rmtree(work, ignore_errors=True)
            let_go(handle)


def recover_folder(path: str | os.PathLike) -> bool:
    """Finish a save to a folder that was killed while it moved files, and delete what killed saves have left there.

    Args:
        path: the folder.

    Returns:
        Whether there was a save to finish.

    Raises:
        NotADirectoryError: there is no such folder.
        BlockingIOError: somebody is saving to it at this moment.
        FileExistsError: somebody has made files since that have the names of those to move; says which.
        ValueError: the journal of that save is damaged.
    """
    path = Path(path).resolve()
    if not path.is_dir():
        raise NotADirectoryError(f"cannot recover {path}: there is no such folder.")
    handle, _ = _hold(path)
    try:
        return _put_in_order(path, handle)
    finally:
        let_go(handle)


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file into an existing folder, completely or not at all, and not through a link to another.

    Raises:
        FileNotFoundError: there is no such folder.
        FileExistsError: something that is not a file has its name.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}.")
    check_target(path.parent, path.name)
    with held_folder(PROBE, path.parent) as place:
        part = place / "file"
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)


def _try_out(nearest: Path, missing: tuple[str, ...]) -> None:
    """Do what a save does: make the missing folders, write a file, rename it."""
    with held_folder(PROBE, nearest) as place:
        for number, part in enumerate(missing):
            (place / str(number) / part).mkdir(parents=True)
        (place / "file").write_bytes(b"optin")
        os.replace(place / "file", place / "renamed")


def _check_names(path: Path) -> None:
    place = path.stat()
    for entry in path.iterdir():
        if not (_WRITTEN.fullmatch(entry.name) or is_model_file(entry.name)):
            continue
        found = entry.lstat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            raise FileExistsError(
                f"cannot save to {path}: {entry.name} is to be a file, and is a {kind_of(entry)} there; move it away, "
                "or give another folder."
            )
        if place.st_mode & stat.S_ISVTX and os.geteuid() not in (0, place.st_uid, found.st_uid):
            raise PermissionError(
                f"cannot save to {path}: {entry.name} belongs to somebody else, and only the owner may replace it."
            )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a folder, made if missing, against other savers; the system releases it when a process ends."""
    handle, made = _hold(path)
    try:
        _put_in_order(path, handle)
        yield
    except BaseException:
        for folder in reversed(made):
            with suppress(OSError):  # somebody put something into it
                folder.rmdir()
        raise
    finally:
        let_go(handle)


def _put_in_order(path: Path, handle: int | None) -> bool:
    """Finish what a killed save had begun, and delete what killed processes left; whether there was one to finish."""
    finished = recover(path, held=handle is not None)
    sweep(PROBE, path.parent)
    sweep_earlier(path)
    return finished


def _hold(path: Path) -> tuple[int | None, list[Path]]:
    """A locked handle of the folder, `None` where there are no locks, and the folders made for it, outermost first."""
    for attempt in itertools.count():
        made = []
        try:
            for folder in reversed([place for place in (path, *path.parents) if not place.exists()]):
                with suppress(FileExistsError):
                    folder.mkdir()
                    made.append(folder)
            handle = open_folder(path)
        except FileNotFoundError:  # another saver failed and removed its folder
            if attempt == _ATTEMPTS:
                raise
            continue
        if handle is None:
            return None, made
        taken = take(handle)
        if taken is False:
            release(handle)
            raise BlockingIOError(
                f"somebody else is saving to {path} at this moment: wait until that is done, or give another folder."
            )
        if taken is None:
            release(handle)
            return None, made
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle, made
        release(handle)
