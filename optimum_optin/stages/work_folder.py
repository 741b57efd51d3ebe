"""Work folders: the place of a run's unfinished work, held by one run at a time, and refused to any other work."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files.folders import check_folder, write_file
from ..files.locks import take
from ..running.processes import is_main, together

IDENTITY_FILE = "optin_work.json"
_LOCK_FILE = "optin_work.lock"


@dataclass
class Clock:
    """Seconds of work, those of earlier runs included."""

    earlier: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        """What the work has taken so far."""
        return self.earlier + time.perf_counter() - self.started

    def at_least(self, seconds: float) -> None:
        """Begin to count at what an earlier run had come to."""
        self.earlier = max(self.earlier, seconds)


@dataclass
class Place:
    """Where a stage keeps what it has.

    Args:
        path: folder of the stage's parts; the stage itself has files beside it, which begin with its name.
        clock: the run's.
        names: how often each name of a part was asked for: the second stage of a name is another one.
    """

    path: Path
    clock: Clock
    names: dict[str, int] = field(default_factory=dict)

    def of(self, name: str) -> Place:
        """The place of a part."""
        count = self.names[name] = self.names.get(name, 0) + 1
        return Place(self.path / (name if count == 1 else f"{name}~{count}"), self.clock)

    def file(self, end: str) -> Path:
        """A file of the stage itself."""
        return self.path.with_name(f"{self.path.name}{end}.safetensors")

    def delete_parts(self) -> None:
        """Delete what its parts have kept, as the stage itself is done."""
        shutil.rmtree(self.path, ignore_errors=True)


_HERE: ContextVar[Place | None] = ContextVar("place of the stage that runs", default=None)


def here() -> Place | None:
    """The place of the stage that runs; `None` if nothing is kept."""
    return _HERE.get()


@contextmanager
def at(place: Place | None) -> Iterator[None]:
    """Let stages inside be parts of the one at a place."""
    token = _HERE.set(place)
    try:
        yield
    finally:
        _HERE.reset(token)


@contextmanager
def working_in(path: str | os.PathLike | None, identity: Mapping[str, Any]) -> Iterator[Clock]:
    """Keep what stages inside have done in a folder, and go on from what is there.

    Args:
        path: the folder, made if missing; `None` keeps nothing.
        identity: all that the work depends on, by names that a user knows: words, numbers and `None`.

    Raises:
        ValueError: the folder holds work of another identity; names what differs.
        BlockingIOError: another run is working in it.
        NotADirectoryError, PermissionError, FileExistsError, OSError: see `check_folder`.
    """
    clock = Clock()
    if path is None:
        with at(None):
            yield clock
        return
    folder = together(lambda: check_folder(path))
    folder.mkdir(parents=True, exist_ok=True)
    handle = together(lambda: _locked(folder) if is_main() else None)
    try:
        together(lambda: _claim(folder, identity) if is_main() else None)
        with at(Place(folder, clock)):
            yield clock
    finally:
        if handle is not None:
            os.close(handle)


def _locked(folder: Path) -> int | None:
    """A handle that keeps other runs away until it is closed, or the process ends; `None` where there are no locks."""
    handle = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    taken = take(handle)
    if taken:
        return handle
    os.close(handle)
    if taken is None:
        return None
    raise BlockingIOError(
        f"another run is working in {folder} at this moment: wait until it is done, or give another work_dir."
    )


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Note whose work the folder holds, or raise if that is another's."""
    file = folder / IDENTITY_FILE
    if not file.exists():
        write_file(file, json.dumps(dict(identity), indent=2) + "\n")
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError("it must hold an object")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}): give another work_dir, or delete this one.") from error
    names = [*identity, *(name for name in found if name not in identity)]
    differing = [name for name in names if found.get(name) != identity.get(name)]
    if differing:
        shown = "; ".join(f"{name} is {_shown(found, name)} there, {_shown(identity, name)} here" for name in differing)
        raise ValueError(
            f"work_dir={str(folder)!r} holds another run's work: {shown}. Give another work_dir, or delete this one."
        )


def _shown(identity: Mapping[str, Any], name: str) -> str:
    text = repr(identity[name]) if name in identity else "nothing"
    return text if len(text) < 40 else f"{text[:13]}...{text[-1]}"
