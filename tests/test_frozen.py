"""Data does not change: every dataclass is frozen, but those that gather what a run finds."""

import importlib
import pkgutil

import optimum_optin

FILLED = {
    "passes.joins.Written",
    "passes.joins._Known",
    "proving.observation.Call",
    "scoring.removal._Alone",
    "scoring.removal._Few",
    "scoring.removal._Left",
    "stages.work_folder.Clock",
    "stages.work_folder.Place",
    "tainting.recording.Record",
    "tracing.schedule.Question",
}


def test_data_does_not_change():
    found = set()
    for _, name, _ in pkgutil.walk_packages(optimum_optin.__path__, "optimum_optin."):
        for each in vars(importlib.import_module(name)).values():
            own = isinstance(each, type) and each.__module__ == name and "__dataclass_params__" in vars(each)
            if own and not each.__dataclass_params__.frozen:
                found.add(f"{name}.{each.__name__}".removeprefix("optimum_optin."))
    assert found == FILLED
