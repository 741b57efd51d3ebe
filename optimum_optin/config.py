"""Configuration: what to prune and how, in flat fields that do not change and that JSON can hold."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .files.folders import write_file


class _Floors(dict):
    """Floors by role that cannot be changed, so that a configuration stays frozen and hashable."""

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple:
        return _Floors, (dict(self),)

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise TypeError("a configuration cannot be changed: make another by dataclasses.replace(config, floors=...).")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse


@dataclass(frozen=True)
class OptinConfig:
    """Configuration of one-shot pruning.

    The defaults are the outcome of experiments (docs/source/experiments.mdx).

    Args:
        flops: share of the transformer layers' linear and attention MACs to keep, in (0, 1].
        scorer: a registered scorer, `"surgeon"`, `"gauss_newton"` or `"exact"`.
        num_samples: calibration samples to use at most, drawn with the seed.
        batch_size: calibration samples per forward pass; each probe sees one such minibatch.
        max_length: tokens per sample at most; `None` takes the tokenizer's limit, or the model's.
        unreadable: `"skip"` leaves out calibration samples that cannot be read, and names them: images that are damaged
            or missing, texts that are missing or empty; `"stop"` stops at the first. Half a surrogate pair in a text is
            read as U+FFFD either way.
        probes: random probes of the Gauss-Newton scorer; the surgeon takes half as many, and at least one for
            every minibatch.
        rows: tokens per minibatch whose pairwise similarities are the trajectory.
        temperature: temperature of the output term.
        output_weight: weight of the output term against the trajectory term, each normalised to sum
            to one over all units.
        search: `"measured"` tries 0.1, 1 and 10 times `output_weight` and keeps the cut whose outputs diverge least,
            if the model has a head; `"ranked"` takes `output_weight` as it is (Kwon et al. 2022, and OPTIN).
        compensation: `"ridge"` refits what is left to do the work of what was removed, in closed form;
            `"none"` only removes.
        layout: `"free"` lets every layer keep numbers of its own; `"uniform"` keeps equally many neurons in every layer
            (and heads, where the model's class can be built with fewer), so that the result loads with transformers
            alone (docs/source/guides/loading.mdx).
        remote_code: save `modeling_optin.py` with the model, so that it loads with `trust_remote_code=True` where this
            package is not installed.
        merging: how many similar tokens of an image to merge. `"none"` merges none; `"auto"` saves a part of the FLOPs
            by merging, where the family allows it and trial cuts (`search="measured"`, a model with a head) choose it;
            numbers are the pairs to merge after each layer, 0 after the last (`--merging 4,4,2,0`).
        min_heads: heads that every layer keeps at least.
        min_neurons: neurons that every layer keeps at least.
        seed: seed of every random draw; same seed, same result.
        floors: role -> units of it that every layer keeps at least, for any role that the model has
            (`--floors heads=2,neurons=64`). Those given for heads and neurons take the place of `min_heads` and
            `min_neurons`.

    Raises:
        ValueError: a value that does not fit.

    Example:
        >>> from optimum_optin import OptinConfig
        >>> config = OptinConfig(flops=0.5)
        >>> OptinConfig.from_dict(config.to_dict()) == config
        True
    """

    flops: float = 0.6
    scorer: str = "surgeon"
    num_samples: int = 512
    batch_size: int = 8
    max_length: int | None = None
    unreadable: str = "skip"
    probes: int = 128
    rows: int = 64
    temperature: float = 1.0
    output_weight: float = 1.0
    search: str = "measured"
    compensation: str = "ridge"
    layout: str = "free"
    remote_code: bool = False
    merging: str | Sequence[int] = "none"
    min_heads: int = 1
    min_neurons: int = 0
    seed: int = 0
    floors: Mapping[str, int] = field(default_factory=_Floors)

    def __post_init__(self) -> None:
        if not _is_number(self.flops) or not 0 < self.flops <= 1:
            raise ValueError(f"flops={self.flops!r} must be in (0, 1]: the share of MACs to keep.")
        for name in ("num_samples", "batch_size", "probes"):
            _check_integer(name, getattr(self, name), 1)
        for name in ("min_heads", "min_neurons", "seed"):
            _check_integer(name, getattr(self, name), 0)
        _check_integer("rows", self.rows, 2)
        if self.max_length is not None:
            _check_integer("max_length", self.max_length, 1)
        if not _is_number(self.temperature) or self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature!r} must be a positive number.")
        if not _is_number(self.output_weight) or self.output_weight < 0:
            raise ValueError(f"output_weight={self.output_weight!r} must be 0 or more.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {' or '.join(map(repr, choices))}.")
        self._check_merging()
        self._check_floors()
        if not isinstance(self.remote_code, bool):
            raise ValueError(f"remote_code={self.remote_code!r} must be True or False.")
        if self.remote_code and self.layout == "uniform":
            raise ValueError("remote_code=True is for layout='free': layout='uniform' loads with transformers alone.")
        if not isinstance(self.scorer, str):
            raise ValueError(f"scorer={self.scorer!r} must be the name of a registered scorer.")

    def _check_merging(self) -> None:
        if isinstance(self.merging, str) and self.merging in ("auto", "none"):
            return
        merging = _plain(self.merging)
        if isinstance(merging, str) or not isinstance(merging, Sequence):
            raise ValueError(
                f"merging={self.merging!r} must be 'auto', 'none', or the pairs to merge after each layer."
            )
        merging = tuple(map(_plain, merging))
        for pairs in merging:
            _check_integer("merging", pairs, 0)
        if self.layout == "uniform":
            raise ValueError("tokens are merged by code that layout='uniform' does without: leave one of them.")
        object.__setattr__(self, "merging", merging)

    def _check_floors(self) -> None:
        if not isinstance(self.floors, Mapping) or not all(role and isinstance(role, str) for role in self.floors):
            raise ValueError(f"floors={self.floors!r} must be numbers of units by role, such as {{'channels': 8}}.")
        floors = _Floors((role, _plain(least)) for role, least in self.floors.items())
        for role, least in floors.items():
            _check_integer(f"floors[{role!r}]", least, 0)
        for name in ("min_heads", "min_neurons"):
            role = name.removeprefix("min_")
            if role in floors and getattr(self, name) != getattr(type(self), name):
                raise ValueError(
                    f"floors[{role!r}]={floors[role]} and {name}={getattr(self, name)} are floors of the same units: "
                    "give one of them."
                )
        object.__setattr__(self, "floors", floors)

    @property
    def tokens(self) -> str | Sequence[int]:
        """The earlier name of `merging`; it warns."""
        warnings.warn(_RENAMED, FutureWarning, stacklevel=2)
        return self.merging

    def to_dict(self) -> dict:
        """All fields, as a dict that `json` can write."""
        return {**dataclasses.asdict(self), "floors": dict(self.floors)}

    @classmethod
    def from_dict(cls, data: dict) -> OptinConfig:
        """The configuration with these fields, of this version or an earlier one; missing ones take their defaults.

        Raises:
            ValueError: a field that does not exist, or a value that does not fit.
        """
        fields = {each.name for each in dataclasses.fields(cls)}
        data = current_fields(data)
        unknown = sorted(set(data) - fields)
        if unknown:
            raise ValueError(f"unknown field {', '.join(unknown)}; OptinConfig has {', '.join(sorted(fields))}.")
        return cls(**data)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `optin_config.json` into the folder, which is made if missing."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / CONFIG_FILE, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> OptinConfig:
        """Read `optin_config.json` from a folder."""
        return cls.from_dict(json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8")))


def current_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration by the names that they have now: `tokens` of earlier versions is `merging`.

    Raises:
        ValueError: both are there, and differ.
    """
    fields = {**data}
    if "tokens" in fields:
        tokens = fields.pop("tokens")
        if "merging" in fields and OptinConfig(merging=fields["merging"]) != OptinConfig(merging=tokens):
            raise ValueError(f"tokens={tokens!r} and merging={fields['merging']!r} are one field: give merging alone.")
        fields["merging"] = tokens
    return fields


def _takes_tokens(make: Callable[..., None]) -> Callable[..., None]:
    """An `OptinConfig.__init__` that also takes `tokens`, the earlier name of `merging`."""

    @functools.wraps(make)
    def init(self: OptinConfig, *values: Any, **fields: Any) -> None:
        if "tokens" in fields:
            warnings.warn(_RENAMED, FutureWarning, stacklevel=2)
            default = OptinConfig.merging  # which `dataclasses.replace` hands over, though nobody gave it
            if isinstance(fields.get("merging"), str) and fields["merging"] == default:
                del fields["merging"]
            fields = current_fields(fields)
        make(self, *values, **fields)

    return init


OptinConfig.__init__ = _takes_tokens(OptinConfig.__init__)

_RENAMED = "the field tokens of OptinConfig is called merging now: OptinConfig(merging=...), config.merging, --merging."

_CHOICES = {
    "unreadable": ("skip", "stop"),
    "compensation": ("ridge", "none"),
    "search": ("measured", "ranked"),
    "layout": ("free", "uniform"),
}

CONFIG_FILE = "optin_config.json"

SCORING_FIELDS = ("scorer", "num_samples", "batch_size", "max_length", "probes", "rows", "temperature", "seed")
"""Fields that the scores depend on; the others may change between prunings from the same scores."""


def _plain(value: Any) -> Any:
    """The value with Python's numbers in the place of those of NumPy and PyTorch."""
    return value.tolist() if hasattr(value, "tolist") else value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}.")
