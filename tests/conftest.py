"""Settings of the whole suite: offline, quiet, deterministic."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from transformers.utils import logging

import optimum_optin  # noqa: F401  (registers the plug-in)

logging.disable_progress_bar()
# Tiny matrices: more threads only get in each other's way.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
