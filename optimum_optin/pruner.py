"""`OptinPruner`: one-shot structured pruning of a pre-trained transformer (OPTIN, Algorithm 1)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .architectures.group import Groups
from .compensation.refit import check_tokens
from .config import OptinConfig
from .config_values import check_type
from .discovery.find import is_declared
from .files.folders import NotSavedError, check_folder
from .hub_id import hub_commit
from .inputs.batching import calibration_batches
from .inputs.modalities import modality_of
from .inputs.modules import check_example
from .keeping.doors import keeping
from .merging.schedule import TokenSchedule
from .models.examples import example_of, forget_example, note_example
from .models.identity import device_of, is_of_transformers
from .models.plain import check_module, named_inputs
from .models.wrappers import check_model
from .outcome import Outcome
from .passes.calibration import Calibration, calibrate
from .pipeline import STAGES, prune_model, report_of
from .pricing.macs import total_cost
from .pricing.prices import prices_of
from .publishing.origin import Origin
from .publishing.remote_code import check_remote_code
from .quantities import is_share
from .readiness import check_affordable, check_cut, proved_groups, prunable_groups
from .reading.columns import named
from .reading.samples import undecoded
from .reading.sources import find_source, load_calibration, note_source, source_of
from .report import PruningPlan, layers_of
from .running.randomness import kept_streams
from .scoring import Scores, get_scorer, score
from .search.candidates import check_token_scores, fixed_schedule, ranked, schedules, sublayers_to_go
from .smallest import TRIALS, Allowance, prune_within, without_budget
from .stages.progress import Callback, run_of, stage
from .storage.entry import structure_of_model
from .storage.integrity import check_rebuilt, difference
from .storage.loading import load_model, load_processor
from .storage.record import check_structure, convert_model
from .storage.structure import Structure, compose, structure_of
from .sweeping.asked import Evaluate, asked_of
from .sweeping.budgets import DEFAULT as DEFAULT_BUDGETS
from .sweeping.budgets import SweptBudget, read_budgets
from .sweeping.course import Course, identity_of, stages_of
from .sweeping.course import run as run_sweep
from .sweeping.kept import kept_in
from .sweeping.saving import check_reloadable, save_sweep, taken
from .sweeping.sweep import Sweep
from .sweeping.times import check_timing, timing_of
from .sweeping.yardsticks import Metric, check_drop

logger = logging.get_logger(__name__)

_PROOF, _SCORES = ("proof", 2.0), ("scores", 15.0)  # see `pipeline.STAGES`


class OptinPruner(Outcome):
    """Prunes attention heads and FFN neurons of a pre-trained transformer, without training.

    Args:
        model: the dense model; it is never changed.
        processor: its tokenizer or image processor; may be `None` if calibration data come tokenised, or as pixel
            values.
        config: default configuration of `score`, `plan` and `prune`.

    Attributes:
        pruned_model: the model that the last `prune` made; `None` before.
        report: the report of the last `prune`; `None` before.
        scores: the scores that the last `prune` went by, without the data, even if it failed after scoring.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from optimum_optin import OptinConfig, OptinPruner
        >>> shape = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        ...                    intermediate_size=64)
        >>> pruner = OptinPruner(BertModel(shape))
        >>> calibration = [{"input_ids": list(range(5, 17))} for _ in range(16)]
        >>> model = pruner.prune(calibration, OptinConfig(flops=0.5, probes=8))
        >>> 0.4 < pruner.report.flops_achieved <= 0.5
        True
    """

    def __init__(self, model: PreTrainedModel, processor: Any = None, config: OptinConfig | None = None):
        if example_of(model) is None:
            check_model(model)
        check_type("config", config, OptinConfig)
        check_structure(model)  # refuses a quantized model, too
        super().__init__(model, processor)
        self.config = config or OptinConfig()
        self.scores: Scores | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike | PreTrainedModel,
        task: str | None = None,
        *,
        processor: Any = None,
        config: OptinConfig | None = None,
        **kwargs,
    ) -> OptinPruner:
        """Load a model and its processor onto the device that Accelerate chooses.

        Args:
            model: Hub id, local folder, or a model object, which stays where it is.
            task: e.g. `"text-classification"` or `"feature-extraction"`; `None` takes the class that
                the checkpoint names.
            processor: tokenizer or image processor to take instead of the model's own.
            config: default configuration of `score`, `plan` and `prune`.
            **kwargs: passed to `from_pretrained` of the model (`dtype`, `device_map`, `revision`,
                `token`, `cache_dir`, `subfolder`, ...).

        Raises:
            ValueError: unknown task or architecture, or a model that cannot be pruned (quantized, an adapter, ...).
            OSError: there is no such model, or it is private and the token is missing.
        """
        if not isinstance(model, (str, os.PathLike)):
            return cls(model, processor, config)
        loaded = load_model(model, task, **kwargs)
        pruner = cls(loaded, processor or load_processor(model, modality_of(loaded), **kwargs), config)
        commit = hub_commit(str(model), **kwargs)
        pruner._origin = Origin(loaded, str(model), commit, processor_given=processor is not None)
        pruner._origin.companions(**kwargs | ({"revision": commit} if commit else {}))
        return pruner

    @classmethod
    def from_model(
        cls, module: nn.Module, example_inputs: Any, processor: Any = None, config: OptinConfig | None = None
    ) -> OptinPruner:
        """A pruner for any PyTorch module, by an example of its inputs.

        Its groups are found by tracing and proved on the example. What is saved is loaded by `load_pruned`.

        Args:
            module: the dense module; it is never changed, and measured in evaluation mode.
            example_inputs: a batch of one sample or more: a tensor for the forward's first argument, a tuple for the
                first ones, or a dict by their names; with the samples as first dimension, and real values or random
                ones, as constants tell nothing.
            processor: a callable that makes the input of an image; may be `None` if calibration data come as tensors.
            config: default configuration of `score`, `plan` and `prune`.

        Raises:
            TypeError: `module` is no module, or a wrapper around one.
            ValueError: the module does not run on the example, returns no numbers, or cannot be pruned (weights on the
                meta device, batch norms without statistics, ...); or the example is of no use.
        """
        check_module(module)
        if is_of_transformers(module) and is_declared(module):
            raise ValueError(
                f"what a {module.config.model_type!r} model reads is known: use OptinPruner(model, processor)."
            )
        note_example(module, send_to_device(named_inputs(module, example_inputs), device_of(module)))
        try:
            check_example(module)
        except BaseException:
            forget_example(module)
            raise
        if module.training:
            logger.warning(
                f"the {type(module).__name__} is in training mode: it is measured and pruned as in evaluation mode, "
                "and what comes out is in training mode as well. Call eval() on it."
            )
        return cls(module, processor, config)

    def get_calibration_dataset(
        self,
        dataset_name: str | os.PathLike,
        config_name: str | None = None,
        *,
        split: str = "train",
        num_samples: int = 512,
        seed: int = 0,
        text_columns: Sequence[str] | None = None,
        **kwargs,
    ):
        """A random sample of a data set for `score` and `prune`.

        Args:
            dataset_name: Hub id (`"nyu-mll/glue:sst2"` names its configuration, too), local folder, local file (CSV,
                TSV, JSON, JSONL, Parquet, text, an image, a sound), or a loader's name (`"csv"`, `"json"`, ...) with
                `data_files=`. A path that exists is taken as a path.
            config_name: the data set's configuration, e.g. `"sst2"` of `"glue"`.
            split: split to draw from. Take train, never the split that you evaluate on.
            num_samples: samples to draw at most.
            seed: seed of the draw.
            text_columns: one or two columns that hold the text; `None` leaves the choice to `prune`.
            **kwargs: for a local file, `delimiter` and `streaming`; else passed to `datasets.load_dataset`.

        Returns:
            A `datasets.Dataset` of at most `num_samples` rows; with `streaming=True` a list of them, whose images are
            not decoded yet.

        Raises:
            FileNotFoundError: no such file, folder or data set.
            ValueError: see `read_calibration`; or an option that does not fit a local file.
        """
        dataset = load_calibration(dataset_name, config_name, split, text_columns, kwargs)
        dataset = dataset.shuffle(seed=seed)
        if hasattr(dataset, "__len__"):
            drawn = dataset.select(range(min(num_samples, len(dataset))))
        else:
            drawn = undecoded(dataset).take(num_samples)
        if kwargs.get("streaming"):
            drawn = list(undecoded(drawn))
        if not kwargs:  # the card tells how to draw it again; local paths stay private
            name, config_name = find_source(dataset_name, config_name)
            if isinstance(name, str):
                source = {"dataset": name, "config": config_name, "split": split}
                chosen = {} if text_columns is None else {"text_columns": named(text_columns)}
                note_source(drawn, {**source, **chosen, "num_samples": num_samples, "seed": seed})
        return drawn

    @keeping("self")
    def check(self, config: OptinConfig | None = None) -> None:
        """Raise if the model cannot be pruned as configured; no data are needed, for one sample is made up. `score` and
        `prune` begin with it, `plan` with what takes no pass, or of a model without a row with all of it.
        `check_architecture` tells more.

        Args:
            config: configuration to take instead of the pruner's own.

        Raises:
            ValueError: says what is in the way, and what to do.
        """
        check_type("config", config, OptinConfig)
        config = config or self.config
        prunable_groups(self.model, config)
        if config.remote_code:
            check_remote_code(self.model)
        proved_groups(self.model, config)

    @keeping("self")
    def score(
        self,
        calibration: Any,
        config: OptinConfig | None = None,
        *,
        text_columns: Sequence[str | int] | None = None,
        work_dir: str | os.PathLike | None = None,
        callback: Callback | None = None,
    ) -> Scores:
        """Score every unit; the scores serve any number of `prune` calls.

        Args:
            calibration: see `prune`.
            config: configuration to take instead of the pruner's own.
            text_columns: see `prune`.
            work_dir: see `prune`.
            callback: see `prune`.

        Raises:
            ValueError: the model cannot be pruned, or data, weights or activations are unusable; or `work_dir` holds
                the work of another model, data or configuration.
            StoppedError: the callback stopped it.
            BlockingIOError, NotADirectoryError, PermissionError, OSError: `work_dir` cannot be worked in.
        """
        check_type("config", config, OptinConfig)
        config = config or self.config
        get_scorer(config.scorer)  # an unknown one is refused before the data are read
        if work_dir is not None:
            work_dir = check_folder(work_dir)
        with run_of([_PROOF, _SCORES], callback):
            with stage(_PROOF[0]):
                groups = proved_groups(self.model, config)
            return score(self.model, groups, self._calibrate(calibration, config, text_columns), config, work_dir)

    @keeping("self")
    def plan(self, scores: Scores, flops: float | None = None, config: OptinConfig | None = None) -> PruningPlan:
        """What `search="ranked"` would keep, and the divergence that the scores predict; nothing is cut.

        Trial cuts (`search="measured"`) may find another weight of the output term better.

        Args:
            scores: from `score`.
            flops: the budget; `None` takes the configuration's.
            config: configuration to take instead of the scores' own.

        Raises:
            ValueError: the scores do not fit the model or the configuration, or the budget is too small.
        """
        config = self._config(config, scores, flops)
        # Of a model that is traced, it takes a proof to know what can be pruned.
        groups = (prunable_groups if is_declared(self.model) else proved_groups)(self.model, config)
        scores.check(self.model, config, groups)
        check_token_scores(self.model, config, scores)
        scores = scores.of(groups)
        schedule = schedules(self.model, groups, scores, config)[0]
        check_affordable(self.model, groups, scores.tokens, config, schedule)
        sublayers = sublayers_to_go(self.model, groups, scores, config, schedule)[0]
        masks = ranked(self.model, groups, scores, config, schedule=schedule, sublayers=sublayers).masks
        left = total_cost(self.model, groups, scores.tokens, schedule, masks)
        achieved = left / total_cost(self.model, groups, scores.tokens)
        structure = compose(structure_of_model(self.model), structure_of(groups, masks))
        merges = schedule.to_json()["merges"] if schedule else {}
        prices = prices_of(self.model, groups, scores.tokens, config, schedule)
        return PruningPlan(
            config.flops if is_share(config.flops) else None,
            achieved,
            scores.tokens,
            layers_of(structure),
            merges,
            scores.removed(masks),
            budgets={price.name: getattr(config, price.name) for price in prices},
            kept={price.name: price.cost_of(masks) for price in prices if price.name != "flops"},
        )

    @keeping("self")
    @torch.inference_mode(False)
    def prune(
        self,
        calibration: Any = None,
        config: OptinConfig | None = None,
        *,
        scores: Scores | None = None,
        flops: float | None = None,
        max_drop: float | None = None,
        metric: Metric | None = None,
        save_dir: str | os.PathLike | None = None,
        text_columns: Sequence[str | int] | None = None,
        work_dir: str | os.PathLike | None = None,
        callback: Callback | None = None,
    ) -> PreTrainedModel | nn.Module:
        """Prune the dense model and return the smaller one, an ordinary `transformers` model or module of its class.

        Under `accelerate launch`, call it on every process with the same data: they share the work and all return
        the same model.

        Args:
            calibration: a `datasets.Dataset`, a `DataLoader`, or whatever iterates over samples in order: strings,
                pairs of strings, dicts, tokenised dicts, images or pixel values, sounds; of a plain module, tensors,
                tuples or dicts like its example inputs, or batches of these. Labels are not used, but by encoders with
                a decoder, for which a pair is a text and what is to be written for it. Not needed with
                `scores`, unless they were loaded from disk and compensation is wanted.
            config: configuration; `None` takes that of the scores, or without scores the pruner's.
            scores: scores from an earlier `score` on this model; they serve any budget.
            flops: the budget; `None` takes the configuration's.
            max_drop: how much the model may lose, instead of a budget: of six budgets that are tried from the same
                scores, by halving, the smallest that loses no more is taken. The report tells all (`drops`).
            metric: in which metric it may lose that much. `"agreement"`, which `None` takes: 0.02 for one in fifty
                outputs that differ from the dense model's; `"divergence"`, in nats for classes; `"perplexity"`, as a
                share of the dense model's: these are measured on calibration samples that the refit has not seen. Or a
                function of a model, whose value is the higher the better, such as an accuracy on data of your own.
            save_dir: folder to save model, processor, report and card to.
            text_columns: one or two columns of `calibration` (or places in tuples) that hold the text. `None` takes
                known names (`sentence`, `text`, `premise` and `hypothesis`, ...), else the only column that looks like
                text, and says so. Of an encoder with a decoder: the text that is read, perhaps the one to be written.
            work_dir: folder in which unfinished scores are kept, every minute, so that a run that was killed goes on
                from there when it is started again, and ends as it would have. Finished scores stay in its
                `optin_scores`. It is refused if model, data, configuration or number of processes are other ones.
            callback: a function `(stage, done, total)`, called at the beginning of every loop of the work and after
                each of its steps. If it returns `False`, or raises, the run stops: nothing is saved but in `work_dir`,
                and the dense model is as it was.

        Raises:
            ValueError: unusable data, scores, budget, metric or `work_dir`, raised before long work; or `max_drop` is
                met by no budget that was tried.
            StoppedError: the callback stopped it.
            BlockingIOError: another run is working in `work_dir`.
            NotADirectoryError, PermissionError, FileExistsError, OSError: see `check_save_directory`.
            NotSavedError: saving failed all the same; the model is kept as `pruned_model`.
        """
        if max_drop is not None and flops is not None:
            raise ValueError(f"flops={flops} and max_drop={max_drop} both say how small the model is to be: give one.")
        if max_drop is None and metric is not None:
            raise ValueError(f"metric={metric!r:.80} says in what max_drop= is counted: give that as well.")
        allowed = None if max_drop is None else Allowance(max_drop, "agreement" if metric is None else metric)
        config = self._config(config, scores, flops)
        config = config if allowed is None else without_budget(config)
        if work_dir is not None:
            if scores is not None:
                raise ValueError("work_dir= is for scoring, and scores= leave nothing to score: give one of them.")
            work_dir = check_folder(work_dir)
        if save_dir is not None:
            save_dir = self.check_save_directory(save_dir)
        plan = [_PROOF, *[_SCORES] * (scores is None), *STAGES * (1 if allowed is None else TRIALS)]
        with run_of(plan, callback):
            with stage(_PROOF[0]):
                groups = proved_groups(self.model, config)
            if save_dir is not None:
                check_rebuilt(self.model)
            elif found := difference(self.model):
                logger.warning(f"the pruned model can be used, but not saved and loaded again: {found}.")
            if allowed is not None:
                allowed.check(self.model, calibrated=calibration is not None or bool(scores and scores.calibration))
            scores, calibration = self._scored(
                calibration, scores, groups, [config], text_columns=text_columns, work_dir=work_dir
            )
            self.scores = dataclasses.replace(scores, calibration=None)
            drops = None
            if allowed is None:
                pruned = prune_model(self.model, groups, scores, calibration, config)
            else:
                pruned, config, drops = prune_within(self.model, groups, scores, calibration, config, allowed=allowed)
        self.pruned_model, self.report = pruned.model, None  # kept, even if its report fails
        self._pictures = dict(self._swept)
        base = self._origin.base()
        report = report_of(self.model, groups, pruned, scores, config, calibration=calibration, base=base)
        self.report = dataclasses.replace(report, drops=drops)
        if save_dir is not None:
            try:
                self.save_pretrained(save_dir)
            except Exception as error:
                raise NotSavedError(
                    f"the pruned model could not be saved to {save_dir}: {error}. It is not lost: it is the pruner's "
                    "pruned_model, and save_pretrained saves it to another folder."
                ) from error
        return pruned.model

    @keeping("self")
    @torch.inference_mode(False)
    def sweep(
        self,
        calibration: Any = None,
        budgets: Sequence[SweptBudget] = DEFAULT_BUDGETS,
        config: OptinConfig | None = None,
        *,
        scores: Scores | None = None,
        evaluate: Evaluate = None,
        max_drop: float | None = None,
        save_dir: str | os.PathLike | None = None,
        batch_size: int = 8,
        tokens: int | None = None,
        repeats: int = 15,
        text_columns: Sequence[str | int] | None = None,
        work_dir: str | os.PathLike | None = None,
        callback: Callback | None = None,
    ) -> Sweep:
        """Prune the dense model to many budgets from one scoring, and measure and time each beside the dense model.

        What is measured is each model saved and loaded again. Between its refit and the end, a model is on disk, and
        no more of them are in memory than memory has room for (`sweeping/room.py`). The picture goes into the folder
        and the card of models that are saved afterwards.

        Args:
            calibration: see `prune`.
            budgets: a number is a share of the FLOPs; a text has a unit that says what it is (`"50M"` parameters,
                `"100MB"` on disk, `"20ms"`); a dict has fields of `OptinConfig` that are budgets, which all hold.
            config: all else, see `prune`; its own budgets are not used.
            scores: see `prune`.
            evaluate: what is measured. `None`: the agreement with the dense model on calibration samples that the refit
                has not seen (where there is none, the divergence). A metric of `max_drop`, a function of a model whose
                value is the higher the better, or a task: `"glue/sst2"`, or `{"task": "glue/sst2", "data_dir": "GLUE"}`
                with the options of `evaluate`, and `"metric"` for another than its first.
            max_drop: the smallest model that loses no more in that metric is taken: it becomes `pruned_model`, as if
                `prune` had made it. If none does, there is a warning, and none is taken.
            save_dir: folder to save the table (`optin_sweep.json`), the picture, and each budget's model to, in a
                folder of its own (`flops-0.5`); with `max_drop`, only the model that is taken.
            batch_size: samples per forward pass that is timed.
            tokens: their length; `None` takes the calibration data's mean.
            repeats: timed runs of each model; all take turns. With 0, nothing is timed.
            text_columns: see `prune`.
            work_dir: see `prune`; what is done of the sweep is kept as well, in its `sweep`, budget by budget.
            callback: see `prune`.

        Raises:
            ValueError, TypeError: see `prune`; or budgets, `evaluate`, `max_drop` or timing make no sense.
            FileNotFoundError, ConnectionError, ImportError: the task's data, see `evaluate`; before long work.
            StoppedError, BlockingIOError, NotADirectoryError, PermissionError, FileExistsError, OSError: see `prune`.
            NotSavedError: saving failed; the table was written, if it could be.
        """
        config = self._config(config, scores, None)
        budgets = read_budgets(budgets, config)
        asked = asked_of(evaluate, self.processor)
        check_timing(self.model, batch_size, tokens, repeats)
        check_reloadable(self.model)
        if max_drop is not None:
            check_drop(max_drop)
        if work_dir is not None:
            work_dir = check_folder(work_dir)
        if save_dir is not None:
            save_dir = self.check_save_directory(save_dir)
            for budget in budgets:
                check_folder(save_dir / budget.name, self._origin.companions().files)
        with run_of([_PROOF, *[_SCORES] * (scores is None), *stages_of(len(budgets))], callback):
            with stage(_PROOF[0]):
                groups = proved_groups(self.model, config)
            asked.check(self.model, calibrated=calibration is not None or bool(scores and scores.calibration))
            scores, calibration = self._scored(
                calibration,
                scores,
                groups,
                [budget.config for budget in budgets],
                text_columns=text_columns,
                work_dir=work_dir if scores is None else None,
            )
            self.scores = dataclasses.replace(scores, calibration=None)
            timing = timing_of(self.model, batch_size, tokens or scores.tokens, repeats) if repeats else None
            course = Course(self.model, groups, scores, calibration, asked, timing, self._origin.base())
            with kept_in(work_dir, save_dir, self.model, lambda: identity_of(course, config)) as kept:
                sweep = run_sweep(course, budgets, kept)
                self._swept = sweep.pictures()
                chosen = sweep.points if max_drop is None else taken(sweep, max_drop)
                if max_drop is not None:
                    self.pruned_model, self.report, self._pictures = None, None, dict(self._swept)
                    if chosen:
                        self.pruned_model, self.report = kept.load(chosen[0].name), kept.report(chosen[0].name)
                if save_dir is not None:
                    sweep = save_sweep(sweep, chosen, kept, save_dir, self._write_swept, pictures=self._swept)
        return sweep

    @staticmethod
    def convert_model(model: PreTrainedModel, structure: Structure, schedule: TokenSchedule | None = None) -> None:
        """Cut a dense model to a known structure, in place; see `optimum_optin.storage.record.convert_model`."""
        convert_model(model, structure, schedule)

    def to_dict(self) -> dict:
        """The pruner's default configuration, as a dict that `json` can write."""
        return self.config.to_dict()

    @classmethod
    def from_dict(cls, data: dict, model: PreTrainedModel, processor: Any = None) -> OptinPruner:
        """A pruner for `model` with the configuration that `to_dict` gave."""
        return cls(model, processor, OptinConfig.from_dict(data))

    def _config(self, config: OptinConfig | None, scores: Scores | None, flops: float | None) -> OptinConfig:
        check_type("config", config, OptinConfig)
        check_type("scores", scores, Scores)
        config = config or (scores.config if scores else self.config)
        return config if flops is None else dataclasses.replace(config, flops=flops)

    def _scored(
        self,
        data: Any,
        scores: Scores | None,
        groups: Groups,
        configs: Sequence[OptinConfig],
        *,
        text_columns: Sequence[str | int] | None,
        work_dir: Path | None,
    ) -> tuple[Scores, Calibration | None]:
        """The scores and the calibration (`None` if there is none and none is needed), after all checks; configurations
        differ in their budgets."""
        config = configs[0]
        check_cut(self.model, groups, config)
        if scores is None:
            get_scorer(config.scorer)
        else:
            scores.check(self.model, config, groups)
            check_token_scores(self.model, config, scores)
            scores = scores.of(groups)
        known = scores and scores.calibration
        calibration = known if known and data is None else None
        if scores is None or data is not None:
            calibration = self._calibrate(data, config, text_columns).knowing(known)
        if config.compensation != "none":
            if calibration is None:
                raise ValueError(
                    f"compensation={config.compensation!r} needs calibration data, which saved scores do not hold: "
                    "pass calibration= as well, or set compensation='none'."
                )
            check_tokens(groups, calibration)
        tokens = scores.tokens if scores else calibration.tokens
        for each in configs:
            check_affordable(self.model, groups, tokens, each, fixed_schedule(self.model, groups, each, tokens))
        if scores is None:
            scores = score(self.model, groups, calibration, config, work_dir)
            calibration = scores.calibration
        return scores, calibration

    def _calibrate(self, data: Any, config: OptinConfig, text_columns: Sequence[str | int] | None) -> Calibration:
        with kept_streams(data):
            batches = calibration_batches(
                data,
                self.model,
                self.processor,
                num_samples=config.num_samples,
                batch_size=config.batch_size,
                max_length=config.max_length,
                block_size=config.block_size,
                unreadable=config.unreadable,
                seed=config.seed,
                text_columns=text_columns,
            )
        source = source_of(data)
        if source and text_columns is not None:
            source = {**source, "text_columns": named(text_columns)}
        return calibrate(self.model, [send_to_device(dict(batch), device_of(self.model)) for batch in batches], source)
