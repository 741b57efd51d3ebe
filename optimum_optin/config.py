"""Configuration: what to prune and how, in flat fields that do not change and that JSON can hold."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config_values import Frozen, check_integer, is_number, names_in, numbers_by_name, plain, thawed, units_by_name
from .files.folders import write_file
from .files.json_files import read_object
from .quantities import Quantity, check_quantity


@dataclass(frozen=True)
class OptinConfig:
    """Configuration of one-shot pruning.

    The defaults are the outcome of experiments (docs/source/experiments.mdx).

    Args:
        flops: budget of multiply-accumulates: the share to keep of those of the transformer layers' linears and
            attention, in (0, 1]; or those of the whole model, for one sequence of the calibration data's mean length,
            with a unit: `"850MMACs"`, `"1.7GFLOPs"`. `None` sets no such budget; where none at all is set, it is 0.6.
        params: budget of parameters, of the whole model: the share to keep, in (0, 1], or how many, such as `"50M"`.
            All budgets that are set hold.
        memory: budget of the bytes that the model's tensors take on disk: a share, or such as `"100MB"`. With
            `memory_batch_size`, of the most that a forward pass takes at once: weights, inputs and all between.
        memory_batch_size: samples of the pass that `memory` is about; `None` for what is on disk.
        memory_length: tokens of each of them; `None` takes the calibration data's mean.
        latency: budget of the time of one forward pass on this machine, with as many threads as PyTorch has now: a
            share, or such as `"20ms"`. What units take is measured on cut copies of the model
            (docs/source/guides/latency.mdx), and the cut model is timed at the end.
        latency_batch_size: samples of the pass that `latency` is about.
        latency_length: tokens of each of them; `None` takes the calibration data's mean.
        latency_backend: what runs the pass: `"eager"`, PyTorch as it is; `"compile"`, `torch.compile`; `"onnx"`, ONNX
            Runtime on the CPU.
        scorer: a registered scorer, `"surgeon"`, `"gauss_newton"` or `"exact"`.
        num_samples: calibration samples to use at most, drawn with the seed.
        batch_size: calibration samples per forward pass; each probe sees one such minibatch.
        max_length: tokens per sample at most; `None` takes the tokenizer's limit, or the model's.
        block_size: tokens of the blocks that texts are packed into for a model that predicts the next token, so that
            samples are blocks of running text; `None` takes `max_length`, or else 512 or what the model takes, and
            packs no tokenised samples, and no few short texts.
        unreadable: `"skip"` leaves out calibration samples that cannot be read, and names them: images that are damaged
            or missing, texts that are missing or empty; `"stop"` stops at the first. Half a surrogate pair in a text is
            read as U+FFFD either way.
        probes: random probes of the Gauss-Newton scorer; the surgeon takes half as many, and at least one for
            every minibatch; half of these probe the trajectory as well as the output, where there is one to compare.
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
        depth: how many whole sublayers, an attention or a feed-forward network each, go before single units do, those
            that lose least, by the scores, for their share of the first budget (MACs, parameters, ...); they do not run
            any more. `"auto"` tries none, a few of them and whole layers by trial cuts (`search="measured"`, a model
            with a head); `"none"` takes single units only.
        gqa_units: what a head is where several query heads share a key-value head (grouped-query attention, found by
            tracing): `"kv_heads"` takes a key-value head with its queries; `"query_heads"` takes single query heads, of
            which each key-value head keeps equally many, and all key-value heads stay.
        min_heads: heads that every sublayer of heads keeps at least, cross-attention and the like included, unless it
            goes whole (`depth`).
        min_neurons: neurons that every sublayer of neurons keeps at least, unless it goes whole; units of another kind
            keep one.
        seed: seed of every random draw; same seed, same result.
        floors: units that stay at least, by role, layer, group or pattern, of which the most specific counts
            (`--floors heads=2,layers.0.heads=4`); those of heads and neurons take the place of `min_heads` and
            `min_neurons`.
        include: layers, groups (`layers.3.heads`), roles, or patterns of them (`*.heads`) that may lose units; `None`
            for all (docs/source/guides/choose.mdx).
        exclude: the same of those that keep all units, and stay a part of the budget; it wins over `include` and
            `ceilings` (`--exclude layers.0 "*.heads"`).
        keep: group -> units that must stay, by their index in the model as it is (`--keep layers.3.heads=0,5`).
        ceilings: units that stay at most, by the same names as `floors`.
        round_to: role -> a number that what a group keeps is a multiple of, unless it keeps all its units
            (`--round-to neurons=64`); floors are rounded up, ceilings down. Without one, neurons and channels go by
            eights where a group has 256 or more, as processors multiply other widths slower; 1 leaves any number.

    Raises:
        ValueError: a value that does not fit.

    Example:
        >>> from optimum_optin import OptinConfig
        >>> config = OptinConfig(flops=0.5)
        >>> OptinConfig.from_dict(config.to_dict()) == config
        True
    """

    flops: Quantity | None = None
    params: Quantity | None = None
    memory: Quantity | None = None
    memory_batch_size: int | None = None
    memory_length: int | None = None
    latency: Quantity | None = None
    latency_batch_size: int = 1
    latency_length: int | None = None
    latency_backend: str = "eager"
    scorer: str = "surgeon"
    num_samples: int = 512
    batch_size: int = 8
    max_length: int | None = None
    block_size: int | None = None
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
    depth: str | int = "none"
    gqa_units: str = "kv_heads"
    min_heads: int = 1
    min_neurons: int = 0
    seed: int = 0
    floors: Mapping[str, int] = field(default_factory=Frozen)
    include: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    keep: Mapping[str, Sequence[int]] = field(default_factory=Frozen)
    ceilings: Mapping[str, int] = field(default_factory=Frozen)
    round_to: Mapping[str, int] = field(default_factory=Frozen)

    def __post_init__(self) -> None:
        self._check_budgets()
        for name in ("num_samples", "batch_size", "probes", "latency_batch_size"):
            check_integer(name, getattr(self, name), 1)
        for name in ("min_heads", "min_neurons", "seed"):
            check_integer(name, getattr(self, name), 0)
        check_integer("rows", self.rows, 2)
        for name in ("max_length", "memory_batch_size", "memory_length", "latency_length"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        if self.block_size is not None:
            check_integer("block_size", self.block_size, 2)
        if not is_number(self.temperature) or self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature!r} must be a positive number.")
        if not is_number(self.output_weight) or self.output_weight < 0:
            raise ValueError(f"output_weight={self.output_weight!r} must be 0 or more.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {' or '.join(map(repr, choices))}.")
        self._check_merging()
        self._check_depth()
        self._check_choice()
        if not isinstance(self.remote_code, bool):
            raise ValueError(f"remote_code={self.remote_code!r} must be True or False.")
        if self.remote_code and self.layout == "uniform":
            raise ValueError("remote_code=True is for layout='free': layout='uniform' loads with transformers alone.")
        if not isinstance(self.scorer, str):
            raise ValueError(f"scorer={self.scorer!r} must be the name of a registered scorer.")

    def _check_budgets(self) -> None:
        given = {name: getattr(self, name) for name in BUDGETS if getattr(self, name) is not None}
        for name, value in given.items():
            check_quantity(name, value)
        if not given:
            object.__setattr__(self, "flops", _FLOPS)
        elif self.flops is None and self.merging == "auto":
            raise ValueError("merging='auto' is a part of a budget of MACs: give flops= as well.")
        if self.latency is not None and self.merging != "none":
            raise ValueError("merging tokens is no part of what latency= measures: give one of them.")

    def _check_merging(self) -> None:
        if isinstance(self.merging, str) and self.merging in ("auto", "none"):
            return
        merging = plain(self.merging)
        if isinstance(merging, str) or not isinstance(merging, Sequence):
            raise ValueError(
                f"merging={self.merging!r} must be 'auto', 'none', or the pairs to merge after each layer."
            )
        merging = tuple(map(plain, merging))
        for pairs in merging:
            check_integer("merging", pairs, 0)
        if self.layout == "uniform":
            raise ValueError("tokens are merged by code that layout='uniform' does without: leave one of them.")
        object.__setattr__(self, "merging", merging)

    def _check_depth(self) -> None:
        if self.depth != "none" and self.layout == "uniform":
            raise ValueError("depth is for layout='free': with layout='uniform' all layers keep equally many units.")
        if self.depth in ("auto", "none"):
            return
        if isinstance(self.depth, str):
            raise ValueError(f"depth={self.depth!r} must be 'auto', 'none', or a number of sublayers.")
        check_integer("depth", self.depth, 0)

    def _check_choice(self) -> None:
        """What may go: names and numbers, frozen. Whether the model has them is for `limits_of`."""
        by_name = "numbers of units by role, layer or group, such as {'channels': 8}"
        numbers = {
            "floors": numbers_by_name("floors", self.floors, by_name, 0),
            "ceilings": numbers_by_name("ceilings", self.ceilings, by_name, 0),
            "round_to": numbers_by_name("round_to", self.round_to, "numbers by role, such as {'neurons': 8}", 1),
        }
        if self.include is not None and not names_in("include", self.include):
            raise ValueError("include=[] leaves nothing to prune: name what may lose units, or None for all.")
        names = {"include": self.include and names_in("include", self.include)}
        names["exclude"] = names_in("exclude", self.exclude)
        for field_name, value in {**numbers, **names, "keep": units_by_name("keep", self.keep)}.items():
            object.__setattr__(self, field_name, value)
        for name in ("min_heads", "min_neurons"):
            role = name.removeprefix("min_")
            if role in self.floors and getattr(self, name) != getattr(type(self), name):
                raise ValueError(
                    f"floors[{role!r}]={self.floors[role]} and {name}={getattr(self, name)} are floors of the same "
                    "units: give one of them."
                )

    @classmethod
    def paper(cls, **fields: Any) -> OptinConfig:
        """The setting of the paper (Khaki & Plataniotis, ICLR 2024), to reproduce it and to compare with.

        Every unit is scored by a pass without it (`scorer="exact"`), the search is that of Kwon et al. alone, nothing
        is refitted or merged, and a layer may lose all its heads. Where the weight of the output term and its
        temperature come from stands in docs/source/concepts/method.mdx. `exact` takes a pass per unit: take few
        samples.

        Args:
            **fields: fields to set otherwise, such as `flops=0.6` or `num_samples=32`.

        Raises:
            ValueError: a value that does not fit.
        """
        return cls(**{**PRESETS["paper"], **fields})

    @property
    def tokens(self) -> str | Sequence[int]:
        """The earlier name of `merging`; it warns."""
        warnings.warn(_RENAMED, FutureWarning, stacklevel=2)
        return self.merging

    def to_dict(self) -> dict:
        """All fields, as a dict that `json` can write."""
        return {**dataclasses.asdict(self), **{name: thawed(getattr(self, name)) for name in CHOSEN}}

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
        """Read `optin_config.json` from a folder.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is damaged, or a value does not fit; names the file.
        """
        file = Path(folder) / CONFIG_FILE
        fields = read_object(file)
        try:
            return cls.from_dict(fields)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}: {error}") from error


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

BUDGETS = ("flops", "params", "memory", "latency")
"""Fields that limit the size of the model."""

_FLOPS = 0.6  # where no budget is set

_CHOICES = {
    "unreadable": ("skip", "stop"),
    "compensation": ("ridge", "none"),
    "search": ("measured", "ranked"),
    "layout": ("free", "uniform"),
    "gqa_units": ("kv_heads", "query_heads"),
    "latency_backend": ("eager", "compile", "onnx"),
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "scorer": "exact",
        "output_weight": 0.1,  # the authors' release lets the trajectory count ten times as much as the output
        "temperature": 4.0,
        "search": "ranked",
        "compensation": "none",
        "merging": "none",
        "min_heads": 0,
    },
}
"""Settings by name: the fields in which they differ from the defaults."""

CHOSEN = ("include", "exclude", "keep", "floors", "ceilings", "round_to")
"""Fields that say what may go."""

CONFIG_FILE = "optin_config.json"

SCORING_FIELDS = (
    *("scorer", "num_samples", "batch_size", "max_length", "block_size", "probes", "rows", "temperature", "seed"),
    "gqa_units",
)
"""Fields that the scores depend on; the others may change between prunings from the same scores."""
