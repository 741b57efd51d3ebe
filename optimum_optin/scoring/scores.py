"""Scores: computed once per model and data, saved, re-used for any budget."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import logging

from ..architectures.find import find_groups, find_layers
from ..architectures.group import Group, Masks
from ..config import SCORING_FIELDS, OptinConfig
from ..files.exchange import interrupted_save
from ..files.folders import atomic_folder
from ..hub_id import is_hub_id
from ..inputs.probes import mean_tokens, probe_batch
from ..merging.hooks import merges_tokens
from ..passes.outputs import has_head
from ..passes.starts import Start
from ..running.batch import Batch
from ..running.freezing import frozen
from ..running.processes import check_processes, is_main, wait
from .checks import check_merges, check_terms
from .fingerprint import fingerprint
from .merges import score_merges
from .registry import Scored, Terms, get_scorer

logger = logging.get_logger(__name__)

TENSORS_FILE = "optin_scores.safetensors"
METADATA_FILE = "optin_scores.json"
SCORES_FOLDER = "optin_scores"  # of a repository on the Hub
_MERGES = ".tokens"  # ends a layer's name on disk
_METADATA = {"config", "fingerprint", "tokens", "seconds"}


@dataclass(frozen=True)
class Scores:
    """How much each unit matters.

    Args:
        terms: term -> group key -> score per unit, shape (units,), float64.
        config: the configuration they were computed with.
        fingerprint: of the model they belong to.
        tokens: mean length of the calibration samples, in tokens, rounded.
        seconds: wall-clock time the scoring took.
        merges: term -> layer -> what each further pair of tokens merged after it costs (`score_merges`); empty where
            tokens are not merged.
        batches: the calibration batches, for compensation; not saved.
        starts: what compensation starts from on each batch, if scoring found it on its way, `None` where another
            process did; not saved.
    """

    terms: Terms
    config: OptinConfig
    fingerprint: str
    tokens: int
    seconds: float
    merges: Terms = field(default_factory=dict)
    batches: Sequence[Batch] | None = field(default=None, repr=False, compare=False)
    starts: Sequence[Start | None] | None = field(default=None, repr=False, compare=False)

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
        """One number per pair of tokens, combined as the units' scores are.

        Args:
            output_weight: see `combine`.

        Returns:
            Layer -> what each further pair merged after it costs, shape (pairs,).
        """
        return self._combined(self.merges, output_weight)

    def _combined(self, terms: Terms, output_weight: float | None) -> dict[str, Tensor]:
        weights = {"output": self.config.output_weight if output_weight is None else output_weight}
        combined: dict[str, Tensor] = {}
        for term, by_key in terms.items():
            # Of a term that no unit is scored by, only the layers' shares can be told.
            total = float(sum(score.double().sum() for score in self.terms.get(term, by_key).values()))
            scale = weights.get(term, 1.0) / max(total, 1e-300)
            for key, score in by_key.items():
                combined[key] = combined.get(key, 0) + scale * score.double()
        return combined

    def removed(self, masks: Masks) -> dict[str, float]:
        """What removing units is expected to cost, term by term: the sum of their scores, a second-order estimate.

        Args:
            masks: group key -> what is kept.

        Returns:
            Term -> loss of the trajectory (per minibatch), divergence of the output (per output).
        """
        return {
            term: float(sum(score[~masks[key].bool().cpu()].sum() for key, score in by_group.items()))
            for term, by_group in self.terms.items()
        }

    def check(self, model: nn.Module, config: OptinConfig | None = None) -> None:
        """Refuse scores of another model, a configuration they were not computed with, or numbers that are no scores.

        Args:
            model: the dense model.
            config: what it is to be pruned with; `None` leaves that out.

        Raises:
            ValueError: they do not fit; the message says what differs.
            TypeError: the model's fingerprint in its place, which earlier versions took.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"Scores.check takes the model, got {model!r:.80}.")
        identity = fingerprint(model)
        if identity != self.fingerprint:
            raise ValueError(
                f"these scores belong to another model (fingerprint {self.fingerprint[:12]}, "
                f"this model {identity[:12]}): score this model."
            )
        try:
            probe_batch(model, self.tokens)
        except ValueError as error:
            raise ValueError(f"these scores are for samples that the model does not take: {error}") from error
        check_terms(self.terms, find_groups(model), "these scores")
        check_merges(self.merges, find_layers(model), "these scores")
        for name in SCORING_FIELDS if config else ():
            if getattr(config, name) != getattr(self.config, name):
                raise ValueError(
                    f"these scores were computed with {name}={getattr(self.config, name)!r}, the configuration "
                    f"asks for {getattr(config, name)!r}: score again, or leave {name} as it was."
                )

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write the scores as safetensors and JSON, without the data; complete or not at all.

        Of several processes, the main one writes.
        """
        if is_main():
            self.write(save_directory)
        wait()

    def write(self, save_directory: str | os.PathLike) -> None:
        """`save_pretrained` on this process, without waiting for others."""
        tensors = {
            f"{term}/{key}{suffix}": score.contiguous().clone()  # a scorer's tensors may share memory
            for terms, suffix in ((self.terms, ""), (self.merges, _MERGES))
            for term, by_key in terms.items()
            for key, score in by_key.items()
        }
        metadata = {
            "config": self.config.to_dict(),
            "fingerprint": self.fingerprint,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        metadata["sha256"] = _digest(tensors, metadata)
        with atomic_folder(save_directory) as folder:
            save_file(tensors, folder / TENSORS_FILE)
            (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")

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
            revision: its branch, tag or commit.
            token: for a private one.
            cache_dir: where to keep what is downloaded.

        Raises:
            FileNotFoundError: there are no scores.
            ValueError: they are damaged, or were changed since they were saved.
        """
        if is_hub_id(str(folder)):
            options = {"revision": revision, "token": token, "cache_dir": cache_dir}
            try:
                snapshot = snapshot_download(str(folder), allow_patterns=f"{SCORES_FOLDER}/*", **options)
            except OSError as error:
                raise FileNotFoundError(f"{folder} is no folder, and cannot be read from the Hub: {error}") from error
            folder = Path(snapshot, SCORES_FOLDER)
        folder = Path(folder)
        for name in (TENSORS_FILE, METADATA_FILE):
            if not (folder / name).is_file():
                earlier = interrupted_save(folder)
                hint = f" A save was killed on the way: what was there before is in {earlier}." if earlier else ""
                raise FileNotFoundError(f"{folder} holds no scores: {name} is missing.{hint}")
        try:
            return cls._read(folder)
        except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"the scores in {folder} are damaged, or of another version: {error!r}.") from error

    @classmethod
    def _read(cls, folder: Path) -> Scores:
        tensors = load_file(folder / TENSORS_FILE)
        metadata = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
        if not isinstance(metadata, dict):
            raise ValueError(f"{METADATA_FILE} must hold an object")
        digest = metadata.pop("sha256", None)
        if digest is None:
            logger.warning(
                f"the scores in {folder} were saved by an earlier version, without a checksum: nobody can tell whether "
                "they were changed since."
            )
        elif digest != _digest(tensors, metadata):
            raise ValueError("they are not what was saved, by their checksum: score again")
        terms: Terms = {}
        merges: Terms = {}
        for name, score in tensors.items():
            if not score.is_floating_point():
                raise ValueError(f"{name} is {score.dtype}, not of floating-point numbers")
            term, key = name.split("/", 1)
            target = merges if key.endswith(_MERGES) else terms
            target.setdefault(term, {})[key.removesuffix(_MERGES)] = score
        if set(metadata) != _METADATA:
            raise ValueError(f"{METADATA_FILE} must have {', '.join(sorted(_METADATA))}, it has {', '.join(metadata)}")
        return cls(terms, merges=merges, **{**metadata, "config": OptinConfig.from_dict(metadata["config"])})


def score(model: nn.Module, groups: Sequence[Group], batches: Sequence[Batch], config: OptinConfig) -> Scores:
    """Score every unit with the configured scorer.

    Args:
        model: the dense model; unchanged.
        groups: its groups.
        batches: calibration batches on the model's device.
        config: see `OptinConfig`.

    Raises:
        ValueError: unknown scorer; weights, activations or scores that are not finite; more processes than batches.
    """
    scorer = get_scorer(config.scorer)
    check_processes(min(len(batches), config.probes))
    check_finite(model)
    identity = fingerprint(model)
    started = time.perf_counter()
    with frozen(model):
        result = scorer(model, groups, batches, config)
        # Without a head no trial cut can tell how many to merge, so none are.
        merging = merges_tokens(model, config) and has_head(model, batches[0])
        merges = score_merges(model, batches, config) if merging else {}
    scored = result if isinstance(result, Scored) else Scored(result)
    check_terms(scored.terms, groups, f"scorer {config.scorer!r}")
    terms = {term: {key: each.double() for key, each in by_key.items()} for term, by_key in scored.terms.items()}
    seconds = time.perf_counter() - started
    tokens = mean_tokens(batches, model)
    return Scores(terms, config, identity, tokens, seconds, merges, batches, scored.starts)


def check_finite(model: nn.Module) -> None:
    """Raise if a weight is NaN or infinite.

    Raises:
        ValueError: names the first such parameter.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"weight {name} holds NaN or infinite values: the checkpoint is damaged.")


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and values of the tensors, and over the metadata."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
