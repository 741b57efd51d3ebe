"""Plans and reports: what a budget would keep, and what was cut, counted and measured."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .annotated import check_fields
from .architectures.group import EXPERT_NEURONS, HEADS, NEURONS
from .config import BUDGETS, OptinConfig, current_fields
from .figures import CalibrationSource, Continuations, Divergence, Drops, Evaluation, HubModel, Latency, plain
from .files.folders import write_file
from .files.json_files import read_object
from .files.links import check_inside
from .quantities import Quantity, shown
from .reasons import reasons_of
from .storage.structure import MOST_UNITS, Structure

REPORT_FILE = "optin_report.json"

Layers = dict[str, dict[str, dict[str, int]]]
"""Layer -> role -> `{"kept": units left, "units": units of the dense model}`."""

ROLES = {HEADS: "attention heads", NEURONS: "feed-forward neurons", EXPERT_NEURONS: "neurons of experts"}
"""What roles are called in a sentence, in the order of listing; other roles follow, by their own names."""


@dataclass(frozen=True)
class PruningPlan:
    """What a budget keeps, before anything is cut.

    Args:
        flops_requested: the budget, as a share of the dense layers' MACs; `None` if it was another one.
        flops_achieved: the share that the chosen masks keep.
        tokens: sequence length that the MACs are counted at.
        layers: what each layer keeps.
        merges: layer -> pairs of tokens merged after it; empty if none are.
        predicted: term -> what removal is expected to lose by the scores (`Scores.removed`).
        budgets: what was asked for: `"flops"`, `"params"`, `"memory"`, `"latency"` -> share, or number with a unit.
        kept: of these, how many parameters and bytes the model would have, and how many seconds a pass would take.
    """

    flops_requested: float | None
    flops_achieved: float
    tokens: int
    layers: Layers
    merges: dict[str, int] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    budgets: dict[str, Quantity] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """All fields, as a dict that `json` can write."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return (
            f"FLOPs (layer MACs at {self.tokens} tokens): {_requested(self.flops_requested, self.budgets)}"
            f"achieved {self.flops_achieved:.1%}\n{_kept(self.kept)}"
            f"{_predicted(self.predicted)}{layer_table(self.layers, self.merges)}"
        )


@dataclass(frozen=True)
class PruningReport:
    """What was cut, counted on the rewritten model.

    Args:
        flops_requested: the budget, as a share of the dense layers' MACs, without those of what is left whole; `None`
            if it was another one (`config`).
        flops_achieved: the share that is left: these MACs less those that the rewritten model saves.
        tokens: sequence length that MACs are counted at, the calibration data's mean.
        macs_dense: MACs of the whole dense model for one such sequence, by PyTorch's flop counter.
        macs_pruned: MACs of the whole rewritten model, likewise.
        params_dense: parameters of the dense model.
        params_pruned: parameters of the rewritten model.
        layers: what each layer keeps.
        merges: layer -> pairs of tokens merged after it; empty if none are.
        left_whole: what was found in the model and could not be pruned: name -> reason.
        seconds: wall-clock time by stage.
        config: the `OptinConfig` as a dict.
        output_weight: weight of the output term that the masks come from.
        divergence: divergence of the outputs from the dense model's, on calibration samples that the refit has not
            seen if there are two batches or more; `None` without calibration data.
        bytes_dense: bytes of the tensors that the dense model is saved with; 0 in reports of earlier versions.
        bytes_pruned: the same of the rewritten model.
        peak_dense: the most bytes that a pass of the dense model takes at once, if `memory` was a budget of that, or 0.
        peak_pruned: the same of the rewritten model.
        continuations: what the pruned model writes, of language models, on the same samples; `None` for others.
        drops: what `prune(max_drop=...)` tried; `None` if the budget was given.
        evaluations: what `OptinPruner.evaluate` measured, one entry for each task and split.
        latency: what `OptinPruner.benchmark` measured; `None` if nothing was.
        calibration: the data that it was pruned on; `None` if there were none.
        base: the dense model on the Hub; `None` if it came from elsewhere.
        refit: what was different with the refit of some groups, by key; others were refitted to the residual stream, or
            nothing was refitted.

    `divergence`, `continuations`, `drops`, `latency`, `calibration`, `base` and the entries of `evaluations` are
    dataclasses of `optimum_optin.figures`. They may be given as dicts, and can be read like dicts:
    `report.latency["speedup"]`.
    """

    flops_requested: float | None
    flops_achieved: float
    tokens: int
    macs_dense: int
    macs_pruned: int
    params_dense: int
    params_pruned: int
    layers: Layers
    merges: dict[str, int] = field(default_factory=dict)
    left_whole: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    output_weight: float | None = None
    divergence: Divergence | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    latency: Latency | None = None
    calibration: CalibrationSource | None = None
    base: HubModel | None = None
    refit: dict[str, str] = field(default_factory=dict)
    continuations: Continuations | None = None
    drops: Drops | None = None
    bytes_dense: int = 0
    bytes_pruned: int = 0
    peak_dense: int = 0
    peak_pruned: int = 0

    def __post_init__(self) -> None:
        read = {
            "divergence": Divergence.of(self.divergence),
            "continuations": Continuations.of(self.continuations),
            "drops": Drops.of(self.drops),
            "evaluations": [Evaluation.of(entry) for entry in self.evaluations],
            "latency": Latency.of(self.latency),
            "calibration": CalibrationSource.of(self.calibration),
            "base": HubModel.of(self.base),
        }
        for name, value in read.items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict:
        """All fields, as a dict that `json` can write."""
        return plain(vars(self))

    def evaluated(self, entry: Evaluation) -> PruningReport:
        """The report with one more entry in `evaluations`, in place of an earlier one of the same task and split."""
        others = [one for one in self.evaluations if (one.task, one.split) != (entry.task, entry.split)]
        return dataclasses.replace(self, evaluations=[*others, entry])

    def save(self, save_directory: str | os.PathLike) -> None:
        """Write `optin_report.json` into an existing folder, completely or not at all."""
        write_file(Path(save_directory) / REPORT_FILE, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike) -> PruningReport:
        """Read `optin_report.json` from a folder.

        Raises:
            FileNotFoundError: there is no report.
            ValueError: the report is damaged, or of a newer version.
        """
        file = Path(folder) / REPORT_FILE
        check_inside(file)
        fields = read_object(file)
        try:
            report = cls(**{**fields, "config": current_fields(fields.get("config", {}))})
            check_fields(report)
            _check_ranges(report)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} is damaged, or of a newer version of optimum-optin: {error}.") from error
        return report

    def _peak(self) -> str:
        samples, tokens = self.config["memory_batch_size"], self.config["memory_length"] or self.tokens
        change = _change(self.peak_dense, self.peak_pruned, 1e6, "MB")
        return f"memory of a pass of {samples} x {tokens} tokens: {change}"

    def _figures(self) -> list[Any]:
        return [self.drops, self.divergence, self.continuations, *self.evaluations, self.latency]

    def __str__(self) -> str:
        seconds = ", ".join(f"{stage} {time:.1f} s" for stage, time in self.seconds.items())
        counted = "MACs of what can be pruned" if self.left_whole else "layer MACs"
        return "\n".join(
            [
                f"FLOPs ({counted} at {self.tokens} tokens): {_requested(self.flops_requested, self.config)}"
                f"achieved {self.flops_achieved:.1%}",
                f"MACs, whole model, counted: {_change(self.macs_dense, self.macs_pruned, 1e6, 'M')}",
                f"parameters: {_change(self.params_dense, self.params_pruned, 1e6, 'M')}",
                *([f"bytes: {_change(self.bytes_dense, self.bytes_pruned, 1e6, 'MB')}"] if self.bytes_dense else []),
                *([self._peak()] if self.peak_dense else []),
                f"time: {seconds}",
                *(str(figure) for figure in self._figures() if figure is not None),
                *_refit_lines(self.refit),
                layer_table(self.layers, self.merges),
                *(f"left whole: {reason}" for reason in reasons_of(self.left_whole)),
            ]
        )


def layers_of(structure: Structure) -> Layers:
    """How many units each layer keeps, and of how many, by a structure."""
    layers: Layers = {}
    for key, entry in structure.items():
        layer, _, role = key.rpartition(".")
        layers.setdefault(layer, {})[role] = {"kept": len(entry.kept), "units": entry.units}
    return layers


def commit_title(report: PruningReport) -> str:
    """The title of the commit that uploads the model to the Hub."""
    return f"Upload model pruned to {report.flops_achieved:.1%} of its FLOPs"


def roles_of(layers: Layers) -> list[str]:
    """The roles that some layer has."""
    found = dict.fromkeys(role for roles in layers.values() for role in roles)
    return [role for role in ROLES if role in found] + [role for role in found if role not in ROLES]


def check_listed(layers: Layers) -> None:
    """Raise if layers that were read would take a table of any size: it has a cell for each layer and each role.

    Raises:
        ValueError: says how many there are.
    """
    roles = roles_of(layers)
    if len(layers) * sum(len(role) + _CELL for role in roles) > _MOST_CHARACTERS:
        raise ValueError(f"{len(layers)} layers with {len(roles)} roles are more than any model has")


def layer_table(layers: Layers, merges: Mapping[str, int]) -> str:
    """A line for each layer: what it keeps and, if any layer merges tokens, how many."""
    widths = {role: max(len(f"{role} kept") + 4, 14) for role in roles_of(layers)}
    heading = "".join(f"{f'{role} kept':>{width}}" for role, width in widths.items())
    rows = [f"{'layer':<12}{heading}" + f"{'tokens merged':>16}" * bool(merges)]
    for layer, roles in layers.items():
        counts = "".join(f"{_count(roles, role):>{width}}" for role, width in widths.items())
        rows.append(f"{layer:<12}{counts}" + f"{merges.get(layer, 0):>16}" * bool(merges))
    return "\n".join(rows)


def _check_ranges(report: PruningReport) -> None:
    """Raise if a report that was read says what no pruning does, or would take tables of any size.

    Raises:
        ValueError: names the first such field.
    """
    for name, least in (
        ("tokens", 0),
        ("macs_dense", 1),
        ("macs_pruned", 0),
        ("params_dense", 1),
        ("params_pruned", 0),
        ("bytes_dense", 0),
        ("bytes_pruned", 0),
        ("peak_dense", 0),
        ("peak_pruned", 0),
    ):
        if getattr(report, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(report, name)}")
    for name in ("flops_requested", "flops_achieved"):
        if getattr(report, name) is not None and not 0 <= getattr(report, name) < _MOST_SHARE:
            raise ValueError(f"{name} must be a share of at least 0, got {getattr(report, name)}")
    for layer, roles in report.layers.items():
        for role, counts in roles.items():
            if set(counts) != {"kept", "units"} or not 0 <= counts["kept"] <= counts["units"] <= MOST_UNITS:
                raise ValueError(
                    f"layers[{layer!r:.80}][{role!r:.80}] must have kept and units, with 0 <= kept <= units <= "
                    f"{MOST_UNITS}, got {counts!r:.80}"
                )
    check_listed(report.layers)
    if any(count < 0 for count in report.merges.values()):
        raise ValueError("merges must be whole numbers of at least 0")
    OptinConfig.from_dict(report.config)
    if report.base:
        _check_base(report.base)


def _check_base(base: HubModel) -> None:
    try:
        validate_repo_id(base.repo_id)
    except HFValidationError as error:
        raise ValueError(f"base.repo_id is no name on the Hub: {base.repo_id!r:.80}") from error
    if base.commit is not None and not re.fullmatch(r"[\w.-]{1,100}", base.commit, re.ASCII):
        raise ValueError(f"base.commit is no commit: {base.commit!r:.80}")


_CELL = 20  # characters
_MOST_SHARE = 1000  # merging may add to what it does not save, but never so much
_MOST_CHARACTERS = 2**24  # of the table of layers; one of 15,000 layers, each an expert, has a tenth of that


def _refit_lines(notes: Mapping[str, str]) -> list[str]:
    """A line for each role and what is to be said of it."""
    counts = Counter((key.rpartition(".")[2], note) for key, note in notes.items())
    return [f"{role} of {count} layers: {note}" for (role, note), count in counts.items()]


def _requested(share: float | None, budgets: Mapping[str, Any]) -> str:
    """What was asked for: a share of MACs, or other budgets."""
    if share is not None:
        return f"requested {share:.1%}, "
    asked = [f"{name}={budgets[name]}" for name in BUDGETS if budgets.get(name) is not None]
    return f"requested {' and '.join(asked)}, " if asked else ""


def _kept(amounts: Mapping[str, float]) -> str:
    """A line for each budget of parameters or bytes."""
    return "".join(f"{name}: {shown(name, amount)} kept\n" for name, amount in amounts.items())


def _predicted(losses: Mapping[str, float]) -> str:
    parts = [f"{term} {loss:.4g}" for term, loss in losses.items()]
    return f"predicted divergence: {', '.join(parts)}\n" if parts else ""


def _change(before: int, after: int, unit: float, suffix: str) -> str:
    return f"{before / unit:,.2f}{suffix} -> {after / unit:,.2f}{suffix} ({after / before:.1%})"


def _count(roles: Mapping[str, Mapping[str, int]], role: str) -> str:
    return f"{roles[role]['kept']} / {roles[role]['units']}" if role in roles else "-"
