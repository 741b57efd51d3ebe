"""Settings of the whole suite: offline, quiet, deterministic. What tests need besides is in `surroundings.py`."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in processes that tests start, too; see `surroundings.py`


def pytest_sessionstart(session):
    """Import the rest where tests run: a process that only hands them to others starts these at once."""
    if not session.config.pluginmanager.hasplugin("dsession"):
        session.config.pluginmanager.import_plugin("surroundings")
