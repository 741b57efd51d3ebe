"""JSON files of whatever origin: read whole, of a size that was checked, and named if they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_MOST_BYTES = 2**24  # configs and reports have some 10 kB; parsed, a hostile file takes twenty times its size


def read_object(file: Path, most: int = _MOST_BYTES) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        file: the file.
        most: the most bytes that it may have.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is too large, no JSON, or holds no object; names it.
    """
    try:
        size = file.stat().st_size
        if size > most:
            raise ValueError(f"it has {size:,} bytes, more than the {most:,} that we read")
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it must hold a JSON object, and holds {found!r:.40}")
    except (ValueError, RecursionError) as error:  # what is nested too deeply ends in the latter
        raise ValueError(f"{file} is damaged: {error}.") from error
    return found
