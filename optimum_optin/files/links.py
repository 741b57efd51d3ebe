"""Links in a folder: whether a file there is one of it, or leads to somebody's other files."""

from __future__ import annotations

from pathlib import Path


def stays_inside(file: Path, root: Path) -> bool:
    """Whether a file lies inside a folder; in the Hub's cache, files are links to the cache's store."""
    place, root = file.resolve(), root.resolve()
    store = next((above.parent / "blobs" for above in root.parents if above.name == "snapshots"), root)
    return place.is_relative_to(root) or place.is_relative_to(store)


def check_inside(file: Path) -> None:
    """Raise if a file of a folder is a link that leads out of it: what is there may be nobody else's business.

    Raises:
        ValueError: names both.
    """
    if not stays_inside(file, file.parent):
        raise ValueError(
            f"{file} is a link to {file.resolve()}, outside of its folder, and is not read: put a copy in its place."
        )
