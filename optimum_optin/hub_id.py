"""Hub ids: whether a name may be a repository on the Hub, and which commit of it is in the cache."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import (
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    HFValidationError,
)
from huggingface_hub.utils import validate_repo_id


def is_hub_id(name: str) -> bool:
    """Whether `name` may be a repository on the Hub: well-formed, and no path on this machine."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def hub_commit(
    name: str, *, revision: str | None = None, cache_dir: str | os.PathLike | None = None, subfolder: str = "", **_: Any
) -> str | None:
    """The commit of a repository that is in the cache, as after loading from it; `None` if none is."""
    if not is_hub_id(name):
        return None
    file = f"{subfolder}/config.json" if subfolder else "config.json"
    cached = try_to_load_from_cache(name, file, cache_dir=cache_dir, revision=revision)
    found = re.search(r"snapshots[/\\]([^/\\]+)", cached) if isinstance(cached, str) else None
    return found.group(1) if found else None
