"""What every test runs in: a seed, few threads, a Hub if it asks for one; equal models are measured once for a file."""

import gc
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import constants
from remembered import Memory
from timed_models import Clock
from transformers.utils import hub as transformers_hub
from transformers.utils import logging

import optimum_optin  # noqa: F401  (registers the plug-in)
from optimum_optin.pricing import timetable
from optimum_optin.timing import side_by_side

logging.disable_progress_bar()
# Tiny matrices: more threads only get in each other's way.
torch.set_num_threads(1)

# Rooms and files whose tests ask what a measurement runs, and what it leaves behind; they measure every model anew.
_FRESH = {"counting", "files", "keeping", "proving", "stages"} | {
    f"test_{name}.py"
    for name in ("bad_input", "facts", "late_failures", "passes", "processes", "tracing_limits", "untouched", "walks")
}
_MEMORY = Memory()
pytest.MonkeyPatch.setattr = _MEMORY.told(pytest.MonkeyPatch.setattr)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Equal models are measured once for the tests of a file, up to where one patches what they are measured with."""
    _MEMORY.used = not _FRESH & {item.path.name, item.path.parent.name}
    yield
    if nextitem is None or nextitem.path != item.path:
        _MEMORY.known.clear()
        _freeze()


def pytest_collection_finish():
    """Most is imported by now."""
    _freeze()


def _freeze():
    """Keep the garbage collector from what is there to stay: it looks at all the rest after every Ctrl-C of a test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running Hub that the client takes for the only one; the user is logged in as `me`."""
    with HubServer() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,  # its storage speaks a protocol of its own
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(transformers_hub, "_hf_api", None)
        monkeypatch.setattr(huggingface_hub.utils._http, "time", SimpleNamespace(sleep=lambda seconds: None))
        monkeypatch.setenv("HF_TOKEN", "hf_me")
        yield server


@pytest.fixture
def clock_of(monkeypatch, tmp_path):
    """Makes the clock that all timing goes by; what is measured is kept in a folder of its own."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))

    def make(**options):
        clock = Clock(**options)
        monkeypatch.setattr(timetable, "runner", clock.runner)
        monkeypatch.setattr(side_by_side, "time", clock)
        return clock

    return make
