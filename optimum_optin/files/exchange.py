"""Files moved into a folder and out of it, completely or not at all, with a journal that survives a kill.

A hidden folder inside the target holds what is new and takes what it replaces; the user's other files are neither
copied nor moved. The journal in it says which files these are. As long as it is there the exchange is not done: an
error or an interruption puts everything back; after a kill, the next save or `optimum-cli optin recover` finishes it,
as all that is new was written before it began. What a folder loads by leaves first and comes last, so that nothing
loads in between, and a note in the folder says why.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from transformers.utils import logging

from .held import is_elsewhere, listed, sweep
from .json_files import read_object
from .locks import is_taken
from .model_files import OLD_TOKENIZER_FILES, are_weights, stale_files

logger = logging.get_logger(__name__)

HIDDEN, PROBE = ".optin-draft-", ".optin-probe-"  # without the target's name, which may be as long as names can be
NOTE_FILE = "optin_unfinished_save.txt"
NEW = "new"
_OLD, _JOURNAL = "old", "journal.json"
_PARTS = frozenset((NEW, _OLD, _JOURNAL, f"{_JOURNAL}.part", f"{NOTE_FILE}.part"))
# A folder, its shards, its tokenizer and its processor load by these: they leave in this order, and come the other way
# round, after all others. Killed on the way, what is left does not load at all.
_ENTRANCES = (
    "config.json",
    "optin_structure.json",
    "optin_scores.json",
    "adapter_config.json",
    "model.safetensors.index.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "processor_config.json",
    "preprocessor_config.json",
)
_NOTE = """A save to this folder was stopped while it moved files, or is at it at this moment. Nothing is lost: what is
not here is in the hidden folder {work}.

    optimum-cli optin recover {path}

finishes the save (in Python: optimum_optin.files.folders.recover_folder), as does the next save to this folder.
"""
_CLOCK = 3.0  # seconds by which times of files may be rounded
_PATIENCE = 600.0  # seconds in which another computer, whose locks are not seen here, has surely moved its files


@dataclass(frozen=True)
class _Journal:
    """What an exchange moves.

    Args:
        work: the hidden folder.
        files: paths of the new files, those that the folder loads by last.
        folders: folders that are made for them.
        replaced: paths of what leaves -> its size and time; `None` if that is not known, as before version 0.1.
    """

    work: Path
    files: list[str]
    folders: list[str]
    replaced: dict[str, list[float]] | None

    def to_json(self) -> str:
        return json.dumps({"files": self.files, "folders": self.folders, "replaced": self.replaced})


def exchange(path: Path, work: Path) -> None:
    """Move what is new into the folder, and what it replaces out of it, completely or not at all.

    Args:
        path: the folder.
        work: a hidden folder in it, with the new files in `new/`; model files that these make stale are moved out, too.

    Raises:
        FileExistsError: see `check_target`; nothing was moved.
        OSError: moving failed; all is as it was, or the message says where it is.
    """
    draft = work / NEW
    names = _files(draft)
    for name in names:
        check_target(path, name)
    stale = stale_files((file.name for file in path.iterdir() if _is_file(file)), names)
    ours = ("modeling_optin.py", *OLD_TOKENIZER_FILES)
    if others := [name for name in stale if not are_weights(name) and name not in ours]:
        logger.warning(f"{path} held another model's {', '.join(others)}: deleted, since they do not fit the new one.")
    replaced = stale + [name for name in names if os.path.lexists(path / name)]
    folders = sorted({str(parent) for name in names for parent in Path(name).parents if not (path / parent).exists()})
    journal = _Journal(work, names, folders, {name: _seen(path / name) for name in replaced})
    try:
        _note(path, journal)
        _finish(path, journal)
    except BaseException:
        try:
            _put_back(path, journal)
        except OSError as error:
            raise OSError(
                f"a save to {path} failed, and what it had moved cannot be put back ({error}). Nothing is lost: it is "
                f"in {work}, and the next save to that folder, or `optimum-cli optin recover`, finishes this one first."
            ) from error
        raise


def recover(path: Path, *, held: bool) -> bool:
    """Finish what a killed save had begun to move, and delete its hidden folders.

    Args:
        path: the folder.
        held: whether the folder is locked against all others of this computer; without locks, who moves is not known.

    Returns:
        Whether there was something to finish.

    Raises:
        FileExistsError: somebody has made files since that have the names of those to move; says which.
        BlockingIOError: another computer, or where there are no locks somebody, has begun to move files just now.
        ValueError: the journal is damaged.
    """
    found = _open_works(path)
    for work in found:
        seen = held and not is_elsewhere(work, HIDDEN)
        if not seen and time.time() - (work / _JOURNAL).stat().st_mtime < _PATIENCE:
            raise BlockingIOError(
                f"somebody else has begun to move files in {path} within {_PATIENCE / 60:.0f} minutes, and whether "
                "that goes on is not known here: wait, or give another folder."
            )
        journal = _read(path, work)
        for name in (*journal.files, *(journal.replaced or ()), *_files(work / _OLD)):
            check_target(path, name)
        if journal.replaced is None:
            _put_back(path, journal)
            end = "the files that it had moved are back"
        else:
            _check_untouched(path, journal)
            _finish(path, journal)
            end = "it is finished now, and the folder holds what it saved"
        shutil.rmtree(work, ignore_errors=True)
        logger.warning(f"an earlier save to {path} was killed: {end}.")
    (path / NOTE_FILE).unlink(missing_ok=True)
    sweep(HIDDEN, path, _PARTS)
    sweep(PROBE, path)
    return bool(found)


def is_open(work: Path) -> bool:
    """Whether an exchange has begun in a hidden folder, and was neither done nor put back."""
    return (work / _JOURNAL).exists()


def check_whole(path: str | os.PathLike) -> None:
    """Raise if a save to a folder was killed while it moved files, so that what is there is neither old nor new.

    Raises:
        FileNotFoundError: says how to recover it.
        BlockingIOError: somebody is saving to it at this moment.
    """
    path = Path(path)
    if not (works := _open_works(path)):
        return
    if is_taken(path):
        raise BlockingIOError(f"somebody is saving to {path} at this moment: wait until that is done.")
    raise FileNotFoundError(
        f"{path} is not whole: a save to it was killed while it moved files. Nothing is lost (it is in {works[0].name} "
        f"there): `optimum-cli optin recover {path}` finishes that save, as does the next save to that folder."
    )


def check_target(path: Path, name: str) -> None:
    """Raise if something that is not a file has the name of a file to write.

    Raises:
        FileExistsError: says what has it.
    """
    target = path / name
    if os.path.lexists(target) and not _is_file(target):
        raise FileExistsError(f"cannot save to {path}: {name} is to be a file, and is a {kind_of(target)} there.")
    for parent in target.parents[: len(Path(name).parts) - 1]:
        if os.path.lexists(parent) and (parent.is_symlink() or not parent.is_dir()):
            raise FileExistsError(
                f"cannot save to {path}: {parent} is to be a folder, and is a {kind_of(parent)} there."
            )


def kind_of(path: Path) -> str:
    """What stands at a path, in a word."""
    if path.is_symlink():
        return "link"
    return "folder" if path.is_dir() else "file" if path.is_file() else "pipe, socket or device"


def _open_works(path: Path) -> list[Path]:
    """Hidden folders with a journal."""
    return [work for work in listed(HIDDEN, path) if (work / _JOURNAL).is_file()]


def _note(path: Path, journal: _Journal) -> None:
    """Begin: from now on, what is not done is finished."""
    _write(journal.work / f"{NOTE_FILE}.part", path / NOTE_FILE, _NOTE.format(path=path, work=journal.work.name))
    _write(journal.work / f"{_JOURNAL}.part", journal.work / _JOURNAL, journal.to_json())


def _close(path: Path, journal: _Journal) -> None:
    (path / NOTE_FILE).unlink(missing_ok=True)
    (journal.work / _JOURNAL).unlink()


def _finish(path: Path, journal: _Journal) -> None:
    """Move what is left to move; what is old at a place is what is not among the old files yet."""
    old, new = journal.work / _OLD, journal.work / NEW
    for name in _by_entrance(journal.replaced or (), leaving=True):
        if not os.path.lexists(old / name) and os.path.lexists(path / name):
            _move(path / name, old / name)
    for name in _by_entrance(journal.files):
        if os.path.lexists(new / name):
            _move(new / name, path / name)
    _close(path, journal)


def _put_back(path: Path, journal: _Journal) -> None:
    """Undo an exchange, wherever it stopped; nothing if it was done."""
    old, new = journal.work / _OLD, journal.work / NEW
    if not is_open(journal.work):
        (path / NOTE_FILE).unlink(missing_ok=True)
        return
    for name in _by_entrance(journal.files, leaving=True):
        if not os.path.lexists(new / name) and os.path.lexists(path / name):
            _move(path / name, new / name)
    for name in _files(old):
        if os.path.lexists(path / name):
            raise _made_since(path, name, old)
        _move(old / name, path / name)
    for folder in reversed(journal.folders):
        with suppress(OSError):
            (path / folder).rmdir()
    _close(path, journal)


def _check_untouched(path: Path, journal: _Journal) -> None:
    """Raise if somebody has made or changed files since, which would be overwritten."""
    old, new = journal.work / _OLD, journal.work / NEW
    for name, (size, changed) in (journal.replaced or {}).items():
        if os.path.lexists(old / name) or not os.path.lexists(path / name):
            continue
        now, later = _seen(path / name)
        if now != size or abs(later - changed) > _CLOCK:
            raise _made_since(path, name, new)
    for name in journal.files:
        is_old = name in (journal.replaced or ()) and not os.path.lexists(old / name)
        if os.path.lexists(new / name) and os.path.lexists(path / name) and not is_old:
            raise _made_since(path, name, new)


def _made_since(path: Path, name: str, other: Path) -> FileExistsError:
    return FileExistsError(
        f"a save to {path} was killed, and the {name} that is there now was made since; the one that is to be there is "
        f"in {other}: move one of them away, or give another folder."
    )


def _read(path: Path, work: Path) -> _Journal:
    """The journal in a hidden folder: every name in it is one inside the folder."""
    file = work / _JOURNAL
    data = read_object(file)
    try:
        journal = _Journal(work, data["files"], data["folders"], data.get("replaced"))
        if any((work / part).is_symlink() for part in (NEW, _OLD)):
            raise ValueError("its folders are links")
        for name in (*_texts(journal.files), *_texts(journal.folders), *(journal.replaced or {})):
            parts = PurePosixPath(name).parts
            if not parts or ".." in parts or PurePosixPath(name).is_absolute() or Path(name).is_absolute():
                raise ValueError(f"{name!r:.80} is no name of a file in {path}")
        for size, changed in (journal.replaced or {}).values():
            _ = float(size) + float(changed)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}): move {work} away to keep what is there now.") from error
    return journal


def _texts(names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"a list of names is wanted, not {names!r:.80}")
    return names


def _seen(file: Path) -> list[float]:
    found = file.lstat()
    return [found.st_size, found.st_mtime]


def _write(part: Path, target: Path, text: str) -> None:
    part.write_text(text, encoding="utf-8")
    os.replace(part, target)


def _move(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(file, target)


def _files(folder: Path) -> list[str]:
    """Path inside a folder of every file in it; the files that it loads by come last."""
    return _by_entrance(file.relative_to(folder).as_posix() for file in folder.rglob("*") if _is_file(file))


def _by_entrance(names: Iterable[str], *, leaving: bool = False) -> list[str]:
    """Names in the order in which they come; or leave, which is the other way round."""
    places = {name: len(_ENTRANCES) - place for place, name in enumerate(_ENTRANCES)}
    return sorted(names, key=lambda name: (places.get(name, 0), name), reverse=leaving)


def _is_file(path: Path) -> bool:
    """Whether this can be replaced by a file without losing more than a file or a link."""
    return path.is_symlink() or path.is_file()
