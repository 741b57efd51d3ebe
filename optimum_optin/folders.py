"""Folders written completely or not at all, beside whatever else they hold.

A save works in a hidden folder inside the target. When all is written, what is replaced moves from the target into it,
what is new moves out of it, and the hidden folder is deleted: the user's other files are neither copied nor moved. A
journal in the hidden folder says which files these are. As long as it is there, the exchange is not done, and an
error, an interruption or the next save puts everything back.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transformers.utils import logging

from .model_files import OLD_TOKENIZER_FILES, are_weights, is_model_file, stale_files

try:
    import fcntl
except ImportError:  # not a POSIX system: savers are not kept apart
    fcntl = None

logger = logging.get_logger(__name__)

_HIDDEN, _PROBE = ".optin-draft-", ".optin-probe-"  # not of the target's name, which may be as long as names can be
_NEW, _OLD, _JOURNAL = "new", "old", "journal.json"
# A folder loads by these, so they leave first and come last: killed on the way, what is left does not load at all.
_ENTRANCES = ("config.json", "optin_scores.json")
_WRITTEN = re.compile(
    r"README\.md|(generation_|tokenizer_|preprocessor_|processor_)?config\.json|tokenizer\.json|"
    r"optin_(report|scores)\.json|optin_scores\.safetensors"
)


class NotSavedError(RuntimeError):
    """The work is done, but its result could not be saved where it was to be.

    Args:
        message: why, and where the result is.
        result: of a command: what it returns, to be printed nevertheless.
    """

    def __init__(self, message: str, result: tuple[dict, str] | None = None):
        super().__init__(message)
        self.result = result


def check_folder(path: str | os.PathLike, names: Iterable[str] = ()) -> Path:
    """The path as a folder that may be written, which is tried: a file is made there, renamed and deleted.

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
        with suppress(FileNotFoundError):  # another saver fails at this moment, and takes its folder away
            _try_out(nearest, path.relative_to(nearest).parts)
            if nearest == path:
                _check_names(path)
            for name in names:
                _check_target(path, name)
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
    holds and the block did not write stay as they are, but for model files of an earlier save (`stale_files`). Killed
    while files are moved, `path` does not load, and the next save first puts back what it held before.

    Raises:
        NotADirectoryError, PermissionError, FileExistsError, OSError: see `check_folder`.
        BlockingIOError: somebody else is saving to it at this moment.
    """
    path = check_folder(path)
    with _locked(path):
        work = Path(tempfile.mkdtemp(prefix=_HIDDEN, dir=path))
        try:
            draft = work / _NEW
            draft.mkdir()
            yield draft
            _exchange(path, work)
        finally:
            if not (work / _JOURNAL).exists():
                shutil.rmtree(work, ignore_errors=True)


def write_file(path: str | os.PathLike, text: str) -> None:
    """Write a file into an existing folder, completely or not at all, and not through a link to another."""
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=_PROBE, dir=path.parent) as place:
        part = Path(place, "file")
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)


def interrupted_save(path: Path) -> Path | None:
    """Where the earlier files of a folder are, if a save to it was killed while it moved them."""
    return next((work / _OLD for work in path.glob(f"{_HIDDEN}*") if (work / _JOURNAL).is_file()), None)


def _try_out(nearest: Path, missing: tuple[str, ...]) -> None:
    """Do what a save does: make the missing folders, write a file, rename it."""
    with tempfile.TemporaryDirectory(prefix=_PROBE, dir=nearest) as name:
        for number, part in enumerate(missing):
            Path(name, str(number), part).mkdir(parents=True)
        Path(name, "file").write_bytes(b"optin")
        os.replace(Path(name, "file"), Path(name, "renamed"))


def _check_names(path: Path) -> None:
    place = path.stat()
    for entry in path.iterdir():
        if not (_WRITTEN.fullmatch(entry.name) or is_model_file(entry.name)):
            continue
        found = entry.lstat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            raise FileExistsError(
                f"cannot save to {path}: {entry.name} is to be a file, and is a {_kind(entry)} there; move it away, or "
                "give another folder."
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
        if handle is not None:
            _recover(path)
        yield
    except BaseException:
        for folder in reversed(made):
            with suppress(OSError):  # somebody put something into it
                folder.rmdir()
        raise
    finally:
        if handle is not None:
            fcntl.flock(handle, fcntl.LOCK_UN)  # a forked process may have the handle, too
            os.close(handle)


def _hold(path: Path) -> tuple[int | None, list[Path]]:
    """A locked handle of the folder, `None` where there are no locks, and the folders made for it, outermost first."""
    while True:
        made = []
        try:
            for folder in reversed([place for place in (path, *path.parents) if not place.exists()]):
                with suppress(FileExistsError):
                    folder.mkdir()
                    made.append(folder)
            if fcntl is None:
                return None, made
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # another saver failed, and took its folder away
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle, made
        except BlockingIOError as error:
            os.close(handle)
            raise BlockingIOError(
                f"somebody else is saving to {path} at this moment: wait until that is done, or give another folder."
            ) from error
        except FileNotFoundError:
            pass
        except OSError:  # a file system without locks
            os.close(handle)
            return None, made
        os.close(handle)


def _exchange(path: Path, work: Path) -> None:
    """Move what is new into the folder, and what it replaces out of it, completely or not at all."""
    draft = work / _NEW
    names = _files(draft)
    for name in names:
        _check_target(path, name)
    stale = stale_files((file.name for file in path.iterdir() if _is_file(file)), names)
    ours = ("modeling_optin.py", *OLD_TOKENIZER_FILES)
    if others := [name for name in stale if not are_weights(name) and name not in ours]:
        logger.warning(f"{path} held another model's {', '.join(others)}: deleted, since they do not fit the new one.")
    replaced = stale + [name for name in names if os.path.lexists(path / name)]
    folders = {parent for name in names for parent in Path(name).parents if not (path / parent).exists()}
    _note(work, {"files": names, "folders": sorted(map(str, folders))})
    try:
        for name in sorted(replaced, key=_is_entrance, reverse=True):
            _move(path / name, work / _OLD / name)
        for name in names:
            _move(draft / name, path / name)
        (work / _JOURNAL).unlink()
    except BaseException:
        try:
            _put_back(path, work)
        except OSError as error:
            raise OSError(
                f"a save to {path} failed, and what it had moved cannot be put back ({error}): it is in {work / _OLD}, "
                "and the next save to that folder puts it back first."
            ) from error
        raise


def _put_back(path: Path, work: Path) -> None:
    """Undo an exchange, wherever it stopped; nothing if it was done."""
    try:
        journal = json.loads((work / _JOURNAL).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    for name in reversed(journal["files"]):
        if not os.path.lexists(work / _NEW / name) and os.path.lexists(path / name):
            _move(path / name, work / _NEW / name)
    old = work / _OLD
    for name in _files(old):
        if os.path.lexists(path / name):  # made by hand since
            raise FileExistsError(
                f"a save to {path} was killed, and its {name} of before, in {old}, is not the one that is there now: "
                "move one of them away, or give another folder."
            )
        _move(old / name, path / name)
    for folder in reversed(journal["folders"]):
        with suppress(OSError):
            (path / folder).rmdir()
    (work / _JOURNAL).unlink()


def _recover(path: Path) -> None:
    """Put back what a killed save had moved, and delete its hidden folders."""
    for probe in path.glob(f"{_PROBE}*"):
        shutil.rmtree(probe, ignore_errors=True)
    for work in path.glob(f"{_HIDDEN}*"):
        if not work.is_dir() or {file.name for file in work.iterdir()} - {_NEW, _OLD, _JOURNAL, f"{_JOURNAL}.part"}:
            continue
        if (work / _JOURNAL).exists():
            _put_back(path, work)
            logger.warning(f"an earlier save to {path} was killed: its files of before are back.")
        shutil.rmtree(work, ignore_errors=True)


def _note(work: Path, journal: dict) -> None:
    part = work / f"{_JOURNAL}.part"
    part.write_text(json.dumps(journal), encoding="utf-8")
    os.replace(part, work / _JOURNAL)


def _move(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(file, target)


def _check_target(path: Path, name: str) -> None:
    target = path / name
    if os.path.lexists(target) and not _is_file(target):
        raise FileExistsError(f"cannot save to {path}: {name} is to be a file, and is a {_kind(target)} there.")
    for parent in target.parents[: len(Path(name).parts) - 1]:
        if os.path.lexists(parent) and (parent.is_symlink() or not parent.is_dir()):
            raise FileExistsError(f"cannot save to {path}: {parent} is to be a folder, and is a {_kind(parent)} there.")


def _files(folder: Path) -> list[str]:
    """Path inside a folder of every file in it, those last that it loads by."""
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if _is_file(file))
    return sorted(names, key=_is_entrance)


def _is_entrance(name: str) -> bool:
    return name in _ENTRANCES


def _is_file(path: Path) -> bool:
    """Whether this can be replaced by a file without losing more than a file or a link."""
    return path.is_symlink() or path.is_file()


def _kind(path: Path) -> str:
    if path.is_symlink():
        return "link"
    return "folder" if path.is_dir() else "file" if path.is_file() else "pipe, socket or device"
