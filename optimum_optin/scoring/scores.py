"""Scores: computed once for a model and its data, saved, and used again for any budget."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from transformers.utils import logging

from ..architectures.group import Groups, Masks
from ..config import SCORING_FIELDS, OptinConfig
from ..discovery.find import find_groups, is_declared
from ..inputs.probes import probe_batch
from ..keeping.doors import keeping
from ..merging.hooks import merges_tokens
from ..passes.calibration import Calibration
from ..passes.half_precision import float_products
from ..passes.outputs import has_head
from ..passes.starts import starts_of, tensors_of
from ..running.freezing import frozen
from ..running.memory import all_finite
from ..running.processes import check_processes, is_main, wait
from ..stages.progress import stage
from ..stages.resuming import Outcome, once
from ..stages.work_folder import working_in
from .checks import check_merges, check_terms
from .fingerprint import fingerprint, work_of
from .merges import score_merges
from .registry import Scored, Terms, flattened, get_scorer, terms_of
from .stored import SCORES_FOLDER, damaged, read_scores, write_scores

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Scores:
    """How much each unit matters.

    Args:
        terms: term -> group key -> score per unit, shape (units,), float64.
        config: the configuration that they were computed with.
        fingerprint: fingerprint of the model that they belong to.
        tokens: mean length of the calibration samples, in tokens, rounded.
        seconds: wall-clock time the scoring took.
        merges: term -> layer -> loss of each further pair of tokens merged after it (`score_merges`); empty if no
            tokens are to be merged.
        calibration: the calibration that they were computed on, for the refit, with the starts that the scorer left;
            it is not saved.

    Raises:
        ValueError: tokens, seconds or fingerprint are none.
    """

    terms: Terms
    config: OptinConfig
    fingerprint: str
    tokens: int
    seconds: float
    merges: Terms = field(default_factory=dict)
    calibration: Calibration | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, int) or isinstance(self.tokens, bool) or self.tokens < 1:
            raise ValueError(f"scores: tokens must be a whole number of at least 1, got {self.tokens!r}.")
        if not isinstance(self.fingerprint, str):
            raise ValueError(f"scores: fingerprint must be a string, got {self.fingerprint!r:.80}.")
        if not isinstance(self.seconds, (int, float)) or not 0 <= self.seconds < math.inf:
            raise ValueError(f"scores: seconds must be a number of at least 0, got {self.seconds!r}.")

    def combine(self, output_weight: float | None = None) -> dict[str, Tensor]:
        """One score per unit: the trajectory term plus the weighted output term.

        Each term is normalised to sum to one over all units, so the weight has no unit and means the
        same for every model.

        Args:
            output_weight: weight of the output term; `None` takes the configuration's.

        Returns:
            Group key -> score, shape (units,).
        """
        return self._combined(self.terms, output_weight)

    def combine_merges(self, output_weight: float | None = None) -> dict[str, Tensor]:
        """One loss for each pair of tokens, combined like the units' scores.

        Args:
            output_weight: see `combine`.

        Returns:
            Layer -> loss of each further pair merged after it, shape (pairs,).
        """
        return self._combined(self.merges, output_weight)

    def _combined(self, terms: Terms, output_weight: float | None) -> dict[str, Tensor]:
        weights = {"output": self.config.output_weight if output_weight is None else output_weight}
        combined: dict[str, Tensor] = {}
        for term, by_key in terms.items():
            # A term that no unit is scored by is divided by its own sum.
            total = float(sum(score.double().sum() for score in self.terms.get(term, by_key).values()))
            scale = weights.get(term, 1.0) / max(total, 1e-300)
            for key, score in by_key.items():
                combined[key] = combined.get(key, 0) + scale * score.double()
        return combined

    def removed(self, masks: Masks) -> dict[str, float]:
        """What removing units is expected to lose, term by term: the sum of their scores, a second-order estimate.

        Args:
            masks: group key -> what is kept.

        Returns:
            Term -> loss of the trajectory (per minibatch), divergence of the output (per output).
        """
        return {
            term: float(sum(score[~masks[key].bool().cpu()].sum() for key, score in by_group.items()))
            for term, by_group in self.terms.items()
        }

    @keeping("model")
    def check(self, model: nn.Module, config: OptinConfig | None = None, groups: Groups | None = None) -> None:
        """Raise if the scores are of another model, were computed with another configuration, or are no scores.

        Args:
            model: the dense model.
            config: the configuration to prune it with; `None` leaves that out.
            groups: the groups that are to be pruned; `None` takes all of a model whose row says what they are, and
                of any other those that have scores.

        Raises:
            ValueError: the scores do not fit; says what differs.
            TypeError: `model` is no model (earlier versions took its fingerprint).
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"Scores.check takes the model, got {model!r:.80}.")
        every = find_groups(model)
        if groups is None:
            scored = {key for by_group in self.terms.values() for key in by_group}
            wanted = every if is_declared(model) else [group for group in every if group.key in scored]
            groups = replace(every, members=tuple(wanted))
        identity = fingerprint(model, every)
        if identity != self.fingerprint:
            raise ValueError(
                f"these scores belong to another model (fingerprint {self.fingerprint[:12]}, "
                f"this model {identity[:12]}): score this model."
            )
        try:
            probe_batch(model, self.tokens)
        except ValueError as error:
            raise ValueError(f"these scores are for samples that the model does not take: {error}") from error
        for name in SCORING_FIELDS if config else ():
            if getattr(config, name) != getattr(self.config, name):
                raise ValueError(
                    f"these scores were computed with {name}={getattr(self.config, name)!r}, the configuration "
                    f"asks for {getattr(config, name)!r}: score again, or leave {name} as it was."
                )
        check_terms((self if is_declared(model) else self.of(groups)).terms, groups, "these scores")
        check_merges(self.merges, groups.layers, "these scores")

    def of(self, groups: Groups) -> Scores:
        """The scores of these groups alone: what else was scored may be left whole with another configuration."""
        keys = {group.key for group in groups}
        terms = {
            term: {key: score for key, score in by_group.items() if key in keys}
            for term, by_group in self.terms.items()
        }
        return replace(self, terms=terms)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write the scores as safetensors and JSON, without the data; complete or not at all.

        Where there are several processes, the main one writes.
        """
        if is_main():
            self.write(save_directory)
        wait()

    def write(self, save_directory: str | os.PathLike) -> None:
        """`save_pretrained` on this process, without waiting for others."""
        metadata = {name: getattr(self, name) for name in ("fingerprint", "tokens", "seconds")}
        write_scores(save_directory, self.terms, self.merges, {"config": self.config.to_dict(), **metadata})

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
    ) -> Scores:
        """Read scores that `save_pretrained` wrote, or `OptinPruner.push_to_hub` uploaded.

        Args:
            folder: a folder, or a repository on the Hub.
            revision: the repository's branch, tag or commit.
            token: token for a private repository.
            cache_dir: where to keep what is downloaded.

        Raises:
            FileNotFoundError: there are no scores.
            ValueError: they are damaged, or were changed since they were saved.
        """
        terms, merges, metadata = read_scores(folder, revision=revision, token=token, cache_dir=cache_dir)
        try:
            return cls(terms, merges=merges, **{**metadata, "config": OptinConfig.from_dict(metadata["config"])})
        except (ValueError, TypeError) as error:  # entries that do not fit
            raise damaged(folder, error) from error


def score(
    model: nn.Module,
    groups: Groups,
    calibration: Calibration,
    config: OptinConfig,
    work_dir: str | os.PathLike | None = None,
) -> Scores:
    """Score every unit with the configured scorer.

    Args:
        model: the dense model; unchanged.
        groups: its groups.
        calibration: its calibration.
        config: see `OptinConfig`.
        work_dir: folder to keep unfinished sums in, and to go on from; `None` keeps none. The scores are saved there,
            in `optin_scores`.

    Raises:
        ValueError: unknown scorer; weights, activations or scores that are not finite; more processes than batches; or
            `work_dir` holds other work.
        BlockingIOError, NotADirectoryError, PermissionError, OSError: see `stages.work_folder.working_in`.
    """
    get_scorer(config.scorer)
    check_processes(min(len(calibration), config.probes))
    check_finite(model)
    identity = fingerprint(model, find_groups(model))
    work = {} if work_dir is None else work_of(model, groups, calibration, config)
    with working_in(work_dir, work) as clock:
        with frozen(model), float_products(model), stage("scores"):
            scored = once("scores", partial(_scored, model, groups, calibration, config))
            # Without a head, no trial cut can tell how many tokens to merge, so none are.
            merging = merges_tokens(model, config) and has_head(model, calibration[0])
            merges = once("merges", partial(_merges, model, groups, calibration, config)).common if merging else {}
        own = scored.own
        starts = None if own is None else starts_of(own, calibration.batches, calibration.real)
        terms = {term: {key: each.double() for key, each in by.items()} for term, by in terms_of(scored.common).items()}
        known = replace(calibration, starts=starts)
        scores = Scores(terms, config, identity, known.tokens, clock.seconds(), terms_of(merges), known)
        if work_dir is not None and is_main():
            try:
                scores.write(Path(work_dir, SCORES_FOLDER))
            except OSError as error:  # they are not lost: they are returned
                logger.warning(f"the scores could not be saved in work_dir={str(work_dir)!r}: {error}")
    return scores


def _scored(model: nn.Module, groups: Groups, calibration: Calibration, config: OptinConfig) -> Outcome:
    """The scores by the configured scorer, with the starts that it leaves."""
    result = get_scorer(config.scorer)(model, groups, calibration, config)
    scored = result if isinstance(result, Scored) else Scored(result)
    check_terms(scored.terms, groups, f"scorer {config.scorer!r}")
    return Outcome(flattened(scored.terms), None if scored.starts is None else tensors_of(scored.starts))


def _merges(model: nn.Module, groups: Groups, calibration: Calibration, config: OptinConfig) -> Outcome:
    return Outcome(flattened(score_merges(model, groups, calibration, config)))


def check_finite(model: nn.Module) -> None:
    """Raise if a weight is NaN or infinite.

    Raises:
        ValueError: names the first such parameter.
    """
    for name, parameter in model.named_parameters():
        if not all_finite(parameter):
            raise ValueError(f"weight {name} holds NaN or infinite values: the checkpoint is damaged.")
