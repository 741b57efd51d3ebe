"""Ctrl-C as Python handles it, which a process that was started in the background does not inherit."""

import signal

import pytest


@pytest.fixture(autouse=True)
def ctrl_c():
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)
