"""Calibration: batches, their real tokens, where they came from, and what the dense model says about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..architectures.group import Groups
from ..config import OptinConfig
from ..inputs.probes import mean_tokens
from ..inputs.tokens import TokenMasks, token_masks
from ..running.batch import Batch, same_batches, samples_in
from ..running.freezing import frozen
from ..running.processes import gathered, my_share, process_count
from ..running.randomness import generators
from ..stages.progress import progress
from .half_precision import float_products
from .outputs import Output
from .starts import Start, dense_pass, starts_of, tensors_of


@dataclass(frozen=True)
class Calibration:
    """What a model is scored on, refitted on and compared on.

    Iterates over the batches.

    Args:
        batches: inputs of the model, on its device.
        real: the real tokens of each batch, see `TokenMasks`.
        tokens: mean length of the samples, padding excluded, rounded.
        source: where they came from, as far as that is known (`PruningReport.calibration`).
        starts: what the dense model says about each batch, `None` for a batch that another process ran; `None`
            altogether if no pass was run yet.
        outputs: what the dense model returned where outputs were compared, by number of the batch, as far as it is
            kept (`search.divergence`).
    """

    batches: Sequence[Batch]
    real: Sequence[TokenMasks]
    tokens: int
    source: Mapping[str, Any] = field(default_factory=dict)
    starts: Sequence[Start | None] | None = None
    outputs: dict[int, Output] = field(default_factory=dict, repr=False, compare=False)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]

    @property
    def samples(self) -> int:
        """How many samples the batches hold."""
        return sum(map(samples_in, self.batches))

    def part(self, indices: Sequence[int]) -> Calibration:
        """The calibration of some of the batches."""
        starts = None if self.starts is None else [self.starts[index] for index in indices]
        batches, real = ([each[index] for index in indices] for each in (self.batches, self.real))
        return replace(self, batches=batches, real=real, starts=starts, outputs={})

    def knowing(self, other: Calibration | None) -> Calibration:
        """This calibration, with the starts of another if that has the same batches."""
        known = other is not None and other.starts is not None and same_batches(other.batches, self.batches)
        return replace(self, starts=other.starts) if known else self


def calibrate(model: nn.Module, batches: Sequence[Batch], source: Mapping[str, Any] | None = None) -> Calibration:
    """The calibration of a model with these batches, which must be on its device; see `Calibration`."""
    real = [token_masks(model, batch) for batch in batches]
    return Calibration(batches, real, mean_tokens(batches, model), source or {})


def calibration_of(model: nn.Module, batches: Calibration | Iterable[Batch]) -> Calibration:
    """The calibration of a model by these batches, if they are not one already."""
    return batches if isinstance(batches, Calibration) else calibrate(model, list(batches))


@torch.inference_mode(False)
def dense_passes(
    dense: nn.Module, groups: Groups, calibration: Calibration, config: OptinConfig, wanted: Sequence[int] | None = None
) -> list[Start | None]:
    """What `refit` needs to know of the dense model, for any number of pruned ones: one pass for each wanted batch.

    Args:
        dense: the model before pruning; unchanged.
        groups: its groups.
        calibration: its calibration; if it has starts, these are returned and nothing is run.
        config: seed, rows and temperature of the probes that weigh the tokens, as for the `surgeon` scorer.
        wanted: indices of the batches to run; `None` for all.

    Returns:
        An entry for each wanted batch, in that order, on every process.
    """
    wanted = range(len(calibration)) if wanted is None else wanted
    if calibration.starts is not None:
        return _of_all(calibration.part(wanted))
    streams = generators(config.seed, len(calibration))
    starts: list[Start | None] = [None] * len(wanted)
    with frozen(dense), float_products(dense):
        for place in progress(my_share(len(wanted)), "token weights", "batch"):
            index = wanted[place]
            starts[place] = dense_pass(
                dense,
                groups,
                calibration.batches[index],
                calibration.real[index],
                rows=config.rows,
                temperature=config.temperature,
                generator=streams[index],
            )
    return _of_all(replace(calibration.part(wanted), starts=starts))


def _of_all(calibration: Calibration) -> list[Start | None]:
    """The starts that any process has, on all of them; they are small."""
    starts = list(calibration.starts)
    if process_count() == 1:
        return starts
    own = {name: tensor.cpu() for name, tensor in tensors_of(starts).items()}
    for given in gathered(own):
        taken = starts_of(given, calibration.batches, calibration.real)
        starts = [start or other for start, other in zip(starts, taken, strict=True)]
    return starts
