"""Files moved into a folder and out of it, completely or not at all, with a journal that survives a kill.

A hidden folder inside the target holds what is new and takes what it replaces; the user's other files are neither
copied nor moved. The journal in it says which files these are. As long as it is there the exchange is not done, and an
error, an interruption or the next save puts everything back.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from transformers.utils import logging

from .model_files import OLD_TOKENIZER_FILES, are_weights, stale_files

logger = logging.get_logger(__name__)

HIDDEN, PROBE = ".optin-draft-", ".optin-probe-"  # without the target's name, which may be as long as names can be
NEW = "new"
_OLD, _JOURNAL = "old", "journal.json"
# A folder loads by these, so they leave first and come last: killed on the way, what is left does not load at all.
_ENTRANCES = ("config.json", "optin_scores.json")


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
    folders = {parent for name in names for parent in Path(name).parents if not (path / parent).exists()}
    try:
        _note(work, {"files": names, "folders": sorted(map(str, folders))})
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


def recover(path: Path) -> None:
    """Put back what a killed save had moved, and delete its hidden folders."""
    for probe in path.glob(f"{PROBE}*"):
        shutil.rmtree(probe, ignore_errors=True)
    for work in path.glob(f"{HIDDEN}*"):
        if not work.is_dir() or {file.name for file in work.iterdir()} - {NEW, _OLD, _JOURNAL, f"{_JOURNAL}.part"}:
            continue
        if (work / _JOURNAL).exists():
            _put_back(path, work)
            logger.warning(f"an earlier save to {path} was killed: the files that it had moved are back.")
        shutil.rmtree(work, ignore_errors=True)


def is_open(work: Path) -> bool:
    """Whether an exchange has begun in a hidden folder, and was neither done nor put back."""
    return (work / _JOURNAL).exists()


def interrupted_save(path: Path) -> Path | None:
    """Where the earlier files of a folder are, if a save to it was killed while it moved them."""
    return next((work / _OLD for work in path.glob(f"{HIDDEN}*") if (work / _JOURNAL).is_file()), None)


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


def _put_back(path: Path, work: Path) -> None:
    """Undo an exchange, wherever it stopped; nothing if it was done."""
    try:
        journal = json.loads((work / _JOURNAL).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    for name in reversed(journal["files"]):
        if not os.path.lexists(work / NEW / name) and os.path.lexists(path / name):
            _move(path / name, work / NEW / name)
    old = work / _OLD
    for name in _files(old):
        if os.path.lexists(path / name):  # made by hand since
            raise FileExistsError(
                f"a save to {path} was killed; the {name} that it moved to {old} is not the one that is there now: "
                "move one of them away, or give another folder."
            )
        _move(old / name, path / name)
    for folder in reversed(journal["folders"]):
        with suppress(OSError):
            (path / folder).rmdir()
    (work / _JOURNAL).unlink()


def _note(work: Path, journal: dict) -> None:
    part = work / f"{_JOURNAL}.part"
    part.write_text(json.dumps(journal), encoding="utf-8")
    os.replace(part, work / _JOURNAL)


def _move(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(file, target)


def _files(folder: Path) -> list[str]:
    """Path inside a folder of every file in it; the files that it loads by come last."""
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if _is_file(file))
    return sorted(names, key=_is_entrance)


def _is_entrance(name: str) -> bool:
    return name in _ENTRANCES


def _is_file(path: Path) -> bool:
    """Whether this can be replaced by a file without losing more than a file or a link."""
    return path.is_symlink() or path.is_file()
