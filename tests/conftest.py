"""Settings of the whole suite: offline, quiet, deterministic."""

import os
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import huggingface_hub
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import constants
from timed_models import Clock
from transformers.utils import hub as transformers_hub
from transformers.utils import logging

import optimum_optin  # noqa: F401  (registers the plug-in)
from optimum_optin.pricing import timetable
from optimum_optin.timing import side_by_side

logging.disable_progress_bar()
# Tiny matrices: more threads only get in each other's way.
torch.set_num_threads(1)


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
