"""Timetables: one for each model, batch, length and backend, kept in memory and on disk."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants
from torch import nn
from transformers.utils import logging

from ..architectures.group import Groups
from ..config import OptinConfig
from ..files.folders import write_file
from ..files.json_files import read_object
from ..inputs.probes import samples_of
from ..models.identity import attention_of, device_of, type_of
from ..running.batch import Batch
from ..running.facts import measured_once
from ..running.processes import on_main
from ..timing.backends import check_backend
from ..timing.machine import cpus, setting_of
from ..version import __version__
from .timetable import Timetable, measure

logger = logging.get_logger(__name__)

_NOISY, _TOO_NOISY = 0.03, 0.2  # errors of a share of the dense time


def timed_batch(model: nn.Module, tokens: int, config: OptinConfig) -> Batch:
    """What a budget of time is for: samples of the calibration data's mean length, or of the configured one.

    Args:
        model: the dense model.
        tokens: the mean length.
        config: the configuration.

    Raises:
        ValueError: see `probe_batch`.
    """
    return samples_of(model, config.latency_length or tokens, config.latency_batch_size)


def timetable_of(model: nn.Module, groups: Groups, tokens: int, config: OptinConfig) -> Timetable:
    """The timetable of a model on this machine, measured if there is none yet.

    What was measured on this machine, with as many threads and the same versions, is taken from
    `HF_HOME/optimum_optin/timetables`. Of several processes, the main one measures.

    Args:
        model: the dense model.
        groups: its groups.
        tokens: the calibration data's mean length.
        config: the configuration.

    Raises:
        ValueError: the backend cannot run, times vary too much to say anything, or see `probe_batch`.
    """
    batch = timed_batch(model, tokens, config)
    name, machine = _name(model, groups, batch, config), _machine(model)
    file = Path(constants.HF_HOME) / "optimum_optin" / "timetables" / f"{name}.json"

    def find() -> Timetable:
        if (known := _read(file, machine)) is not None:
            return known
        found = measure(model, groups, tokens, batch, config.latency_backend)
        _check_noise(found.noise)
        if found.noise <= _NOISY:  # what is noisy is measured again the next time
            _write(file, machine, found)
        return found

    def find_once() -> Timetable:
        check_backend(config.latency_backend, device_of(model))  # by every process, and not at each price
        return on_main(find)

    return measured_once(model, ("timetable", name, *machine.items()), find_once)


def _check_noise(noise: float) -> None:
    """Warn of times that vary.

    Raises:
        ValueError: they vary too much to say anything.
    """
    if noise > _TOO_NOISY:
        raise ValueError(
            f"times on this machine vary too much to keep a budget of latency: by ±{noise:.0%} of the dense model's, "
            "after four rounds. Stop what else runs, or set fewer threads (OMP_NUM_THREADS)."
        )
    if noise > _NOISY:
        logger.warning(
            f"times on this machine vary by ±{noise:.1%} of the dense model's: the budget of latency is kept no better "
            "than that."
        )


def _write(file: Path, machine: Mapping[str, Any], found: Timetable) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps({"machine": machine, "timetable": found.to_dict()}) + "\n")
    except OSError as error:
        logger.warning(f"the timetable could not be kept in {file}: {error}.")


def _read(file: Path, machine: Mapping[str, Any]) -> Timetable | None:
    """A timetable from disk, if it is of this machine."""
    if not file.is_file():
        return None
    try:
        entry = read_object(file)
        found = Timetable.from_dict(entry["timetable"])
        found.tables()
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError, OSError) as error:
        logger.warning(f"the timetable in {file} cannot be read ({error}): it is measured again.")
        return None
    other = {key: value for key, value in machine.items() if entry["machine"].get(key) != value}
    if other:
        told = ", ".join(f"{key} {entry['machine'].get(key)}, now {value}" for key, value in other.items())
        logger.warning(f"the timetable in {file} is of another machine or set-up ({told}): it is measured again.")
        return None
    return found


def _name(model: nn.Module, groups: Groups, batch: Batch, config: OptinConfig) -> str:
    """SHA-256 over the shapes of a model, its groups and what it is timed on: what the file is called."""
    shapes = [
        (name, tuple(each.shape)) for name, each in model.state_dict(keep_vars=True).items() if hasattr(each, "shape")
    ]
    units = [(group.key, group.units, group.parts) for group in groups]
    inputs = [(name, tuple(each.shape)) for name, each in batch.items()]
    whole = (type(model).__name__, type_of(model), shapes, units, inputs, config.latency_backend)
    return hashlib.sha256(repr(whole).encode()).hexdigest()


def _machine(model: nn.Module) -> dict[str, Any]:
    """All that times depend on besides the model's shapes."""
    return {
        **setting_of(model),
        "cores": cpus(),
        "attention": attention_of(model),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "optimum_optin": __version__,
    }
