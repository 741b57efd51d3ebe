"""Import paths of earlier versions: they warn, and lead to where things are now."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

_PACKAGE = __name__.rpartition(".")[0]
# Earlier module -> the modules that have its names now.
_MOVED = {
    "auto_map": ("storage.auto_map",),
    "benchmark": ("evaluation.latency",),
    "card": ("publishing.card",),
    "card_text": ("publishing.card_text",),
    "choice": ("search.candidates",),
    "columns": ("reading.columns",),
    "companions": ("publishing.companions",),
    "composites": ("storage.composites",),
    "costs": ("search.macs",),
    "data": ("inputs.calibration",),
    "divergence": ("search.divergence",),
    "excerpt": ("storage.excerpt",),
    "exchange": ("files.exchange",),
    "facts": ("running.facts",),
    "file_kinds": ("reading.kinds",),
    "fingerprint": ("scoring.fingerprint",),
    "folders": ("files.folders",),
    "forward": ("running.forward",),
    "glue": ("evaluation.glue",),
    "glue_metric": ("evaluation.glue_metric",),
    "groups": ("architectures.group", "running.batch"),
    "hub": ("hub_id", "publishing.hub"),
    "image_folders": ("reading.image_folders",),
    "images": ("inputs.vision",),
    "integrity": ("storage.integrity",),
    "loaders": ("reading.loaders",),
    "loading": ("storage.loading",),
    "local_files": ("reading.rows",),
    "local_paths": ("reading.paths",),
    "losses": ("passes.losses",),
    "masking": ("running.freezing", "editing.masking"),
    "metrics": ("evaluation.metrics",),
    "model_files": ("files.model_files",),
    "moments": ("passes.moments",),
    "origin": ("publishing.origin",),
    "pixels": ("inputs.images",),
    "plain_text": ("reading.plain_text",),
    "plugin": ("storage.plugin",),
    "prepared": ("running.prepared",),
    "processes": ("running.processes",),
    "pruning": ("pipeline",),
    "randomness": ("running.randomness",),
    "remote_code": ("storage.remote_code",),
    "ridge": ("compensation.ridge",),
    "samples": ("inputs.samples",),
    "saved": ("publishing.pruned_folders",),
    "schedule": ("merging.schedule",),
    "sensitivity": ("passes.token_weights",),
    "sources": ("reading.sources",),
    "structure": ("storage.structure",),
    "surgeon": ("scoring.removal",),
    "surgery": ("editing.surgery",),
    "tables": ("reading.tables",),
    "tasks": ("storage.tasks",),
    "texts": ("inputs.texts",),
    "token_merging": ("merging.hooks",),
    "tokens": ("inputs.tokens",),
    "trajectory": ("passes.trajectory",),
    "trials": ("search.trials",),
    "uniform": ("storage.uniform",),
    "walk": ("passes.walk",),
    "wrappers": ("running.wrappers",),
    "writing": ("publishing.writing",),
}


class MovedModules:
    """Finds modules of earlier versions on `sys.meta_path`, when nothing else does."""

    @classmethod
    def find_spec(cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None):
        """The specification of a module that was moved, `None` of any other."""
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, cls) if package == _PACKAGE and name in _MOVED else None

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """The usual kind of module."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Fill it with the names that it had."""
        places = _MOVED[module.__name__.rpartition(".")[2]]
        homes = [f"{_PACKAGE}.{place}" for place in places]
        warnings.warn(
            f"{module.__name__} has moved: import from {' or '.join(homes)}.", FutureWarning, stacklevel=_importer()
        )
        for home in homes:
            found = vars(import_module(home))
            vars(module).update({name: value for name, value in found.items() if not name.startswith("__")})


def _importer() -> int:
    """How many frames above the caller somebody's import statement stands, the import machinery left out."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and (level == 1 or "importlib" in frame.f_code.co_filename):
        level, frame = level + 1, frame.f_back
    return level


sys.meta_path.append(MovedModules)
