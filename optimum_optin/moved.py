"""Import paths of earlier versions: they warn, and lead to where things are now."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = __name__.rpartition(".")[0]
# Earlier module -> the modules that have its names now.
_MOVED = {
    "benchmark": ("evaluation.latency", "timing.side_by_side"),
    "card": ("publishing.card",),
    "card_text": ("publishing.card_text",),
    "choice": ("search.candidates",),
    "costs": ("pricing.macs", "pricing.tensors"),
    "data": ("inputs.batching", "inputs.encoding", "inputs.probes", "reading.samples", "reading.columns"),
    "divergence": ("search.divergence",),
    "excerpt": ("publishing.excerpt",),
    "fingerprint": ("scoring.fingerprint",),
    "folders": ("files.folders",),
    "glue": ("evaluation.glue",),
    "glue_metric": ("evaluation.glue_metric",),
    "groups": ("architectures.group", "running.batch"),
    "hub": ("hub_id", "publishing.hub"),
    "images": ("media.vision",),
    "loading": ("storage.loading",),
    "losses": ("comparing.losses",),
    "masking": ("running.freezing", "editing.masking"),
    "metrics": ("evaluation.metrics",),
    "pixels": ("media.images", "reading.kinds"),
    "plugin": ("storage.plugin", "storage.auto_map", "storage.entry", "storage.record"),
    "processes": ("running.processes",),
    "pruning": ("pipeline",),
    "randomness": ("running.randomness",),
    "remote_code": ("publishing.remote_code",),
    "ridge": ("compensation.ridge",),
    "saved": ("publishing.pruned_folders",),
    "schedule": ("merging.schedule",),
    "sensitivity": ("passes.token_weights",),
    "sources": ("reading.sources",),
    "structure": ("storage.structure",),
    "surgeon": ("scoring.removal",),
    "surgery": ("editing.surgery",),
    "tasks": ("storage.tasks",),
    "token_merging": ("merging.hooks",),
    "tokens": ("inputs.tokens",),
    "trajectory": ("passes.hooks", "passes.outputs", "passes.trajectory"),
    "trials": ("search.trials",),
    "uniform": ("storage.uniform",),
    "walk": ("passes.starts", "passes.walk"),
}
# Package that is still there -> where names are now that it had.
_SCATTERED = {"architectures": ("discovery",)}


def _reads(*inputs: str) -> Callable[[Any], bool]:
    def takes(model: Any) -> bool:
        return set(import_module(f"{_PACKAGE}.discovery").stack_inputs(model).values()) == set(inputs)

    return takes


# Names that nothing here has any more, of earlier modules: `inputs.modalities.modality_of` says what a model takes.
_GONE = {"images": {"takes_images": _reads("pixel_values"), "takes_pairs": _reads("pixel_values", "input_ids")}}


class MovedModules:
    """Finds modules of earlier versions on `sys.meta_path`, when nothing else does."""

    @classmethod
    def find_spec(cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None):
        """The specification of a module that was moved; `None` for any other."""
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, cls) if package == _PACKAGE and name in _MOVED else None

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """Return `None`: Python makes the usual kind of module."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Fill the module with the names that it had."""
        name = module.__name__.rpartition(".")[2]
        places = _MOVED[name]
        homes = [f"{_PACKAGE}.{place}" for place in places]
        # The import machinery's own frames do not count.
        warnings.warn(f"{module.__name__} has moved: import from {' or '.join(homes)}.", FutureWarning, stacklevel=2)
        for home in homes:
            found = vars(import_module(home))
            vars(module).update({each: value for each, value in found.items() if not each.startswith("__")})
        vars(module).update(_GONE.get(name, {}))


def _elsewhere(package: str) -> Callable[[str], Any]:
    """What a package does for a name that it does not have (PEP 562)."""

    def look_up(name: str) -> Any:
        for home in _SCATTERED[package]:
            found = vars(import_module(f"{_PACKAGE}.{home}")).get(name)
            if found is not None and not name.startswith("_"):
                message = f"{_PACKAGE}.{package}.{name} has moved: import from {_PACKAGE}.{home}."
                warnings.warn(message, FutureWarning, stacklevel=3)
                return found
        raise AttributeError(f"module {f'{_PACKAGE}.{package}'!r} has no attribute {name!r}")

    return look_up


sys.meta_path.append(MovedModules)
for _package in _SCATTERED:
    import_module(f"{_PACKAGE}.{_package}").__getattr__ = _elsewhere(_package)
