"""The outcome of a pruning: the model that came of it is measured, saved and pushed with its report and card."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCard
from torch import nn
from transformers import PreTrainedModel

from .config_values import check_type
from .evaluation.comparison import compare
from .evaluation.latency import latency_entry
from .files.folders import atomic_folder, check_folder
from .files.held import temporary_folder
from .keeping.doors import keeping
from .publishing.card import decoded, model_card, own_card
from .publishing.hub import check_push, files_in, push
from .publishing.origin import Origin
from .publishing.writing import check_parts, saved_and_loaded, write_pruned
from .report import PruningReport, commit_title
from .running.processes import is_main, on_main, wait
from .scoring import SCORES_FOLDER, Scores


class Outcome:
    """What came of the last pruning of a model.

    Args:
        model: the dense model.
        processor: its tokenizer or image processor, or `None`.

    Attributes:
        pruned_model: the model that the last `prune` made; `None` before.
        report: the report of the last `prune`; `None` before.
    """

    def __init__(self, model: PreTrainedModel, processor: Any = None):
        self.model = model
        self.processor = processor
        self.pruned_model: PreTrainedModel | nn.Module | None = None
        self.report: PruningReport | None = None
        self._origin = Origin(model, processor_given=processor is not None)
        self._pictures: dict[str, bytes] = {}  # for the card of the pruned model: name -> content
        self._swept: dict[str, bytes] = {}  # of these, what the last `sweep` drew

    @keeping("self")
    def evaluate(
        self,
        task: str,
        *,
        data: Any = None,
        data_dir: str | os.PathLike | None = None,
        split: str | None = None,
        batch_size: int = 32,
        max_samples: int | None = None,
        **options: Any,
    ) -> dict:
        """Measure the dense and, if there is one, the pruned model on a task; the report keeps both.

        The pruned model is first saved and loaded again: what is measured is what a user gets. If there are several
        processes, the main one measures. Of a segmenter, `save_pretrained` then saves a picture with both models'
        masks.

        Args:
            task: `"glue/sst2"` and the like, `"image-classification"`, `"semantic-segmentation"`, `"object-detection"`,
                `"perplexity"`, `"multiple-choice"`, `"summarization"`, `"translation"`,
                `"automatic-speech-recognition"` or `"audio-classification"`.
            data: of all tasks but GLUE, a `datasets.Dataset` or the name of a data set on the Hub, instead of
                `data_dir`; of perplexity, a list of strings, too, and of questions and pairs of texts, a list of rows.
            data_dir: local folder; for GLUE in its TSV layout (`SST-2/dev.tsv`, ...), which `None` takes from the Hub,
                for images as docs/source/guides/evaluation.mdx shows, for perplexity with text files, for questions and
                pairs of texts with rows; or one such file.
            split: split to measure on, by its name on the Hub; `None` takes validation, for MNLI
                `"validation_matched"`, or what there is.
            batch_size: samples per forward pass; it does not change the figures.
            max_samples: samples to draw at most, with a fixed seed, or the first blocks of a text; `None` takes all.
            **options: of the task: of images and classes of sounds, `labels`, the names of the model's classes if its
                config has none; of segmentation, `ignore_index` and `reduce_labels`, see
                `optimum_optin.image_tasks.SemanticSegmentation`; of perplexity, `block_size` and `stride`, see
                `optimum_optin.text_tasks.Perplexity`; of speech recognition, `exact`, see
                `optimum_optin.audio_tasks.SpeechRecognition`; of summarization and translation, `text_columns` and
                `max_new_tokens`, see `optimum_optin.text_tasks.Summarization` and `Translation`.

        Returns:
            The entry of `PruningReport.evaluations` as a dict; before `prune`, it has the dense model's figures only.

        Raises:
            ValueError, FileNotFoundError, ConnectionError, ImportError: see
                `optimum_optin.evaluation.comparison.evaluate_model`; raised before the first forward pass.
        """
        given = {"data": data, "data_dir": data_dir, "split": split, "batch_size": batch_size}
        options |= {**given, "max_samples": max_samples}
        found = on_main(lambda: compare(self._models(), self.processor, task, **options))
        if self.report is not None:
            self.report = self.report.evaluated(found.entry)
            self._pictures |= found.files
        return found.entry.to_dict()

    @keeping("self")
    def benchmark(self, batch_size: int = 8, tokens: int | None = None, repeats: int = 15) -> dict:
        """Time the dense model against the pruned one, saved and loaded again, in one run; the report keeps it.

        If there are several processes, the main one measures.

        Args:
            batch_size: samples per forward pass.
            tokens: length of every sample; `None` takes the calibration data's mean.
            repeats: timed runs of each; the median is reported.

        Returns:
            `PruningReport.latency` as a dict.

        Raises:
            RuntimeError: nothing was pruned yet.
            ValueError: see `optimum_optin.evaluation.latency.latency_entry`.
        """
        _, report = self._pruned()
        options = {"tokens": report.tokens if tokens is None else tokens, "batch_size": batch_size, "repeats": repeats}
        entry = on_main(lambda: latency_entry(*self._models().values(), **options))
        self.report = dataclasses.replace(report, latency=entry)
        return entry.to_dict()

    @keeping("self")
    def check_save_directory(self, save_directory: str | os.PathLike) -> Path:
        """Raise now what would make `save_pretrained` fail later; to find out, all but the weights is saved elsewhere.

        Args:
            save_directory: the folder.

        Returns:
            The folder as an absolute path.

        Raises:
            NotADirectoryError, PermissionError, FileExistsError, OSError: see
                `optimum_optin.files.folders.check_folder`.
            ValueError: the model's configuration or its processor cannot be saved.
        """
        folder = check_folder(save_directory, self._origin.companions().files)
        check_parts(self.model, self.processor)
        return folder

    @keeping("self")
    def save_pretrained(self, save_directory: str | os.PathLike, *, remote_code: bool | None = None) -> None:
        """Save the pruned model, its processor, the report and a model card; completely or not at all.

        Files that stood beside the dense model's weights and belong to it are saved as well (`companions.py`): licence,
        vocabularies, code, modules of sentence-transformers. Weights of another model in the folder are deleted; all
        else in it stays untouched. If there are several processes, the main one writes.

        The folder loads with `import optimum_optin` and plain `AutoModel...from_pretrained(folder)`, that of a plain
        module with `load_pruned(factory, folder)`;
        docs/source/guides/loading.mdx has the ways that need no package. If there is a card, the text outside our part
        stays.

        Args:
            save_directory: the folder.
            remote_code: save `modeling_optin.py`, too; `None` takes what `prune` was configured with.

        Raises:
            RuntimeError: nothing was pruned yet.
            ValueError: there is nothing for remote code to rebuild.
            NotADirectoryError, PermissionError, FileExistsError, BlockingIOError, OSError: see
                `optimum_optin.files.folders.atomic_folder`; nothing has changed then.
        """
        self._pruned()
        if is_main():
            target = Path(save_directory).resolve()
            with atomic_folder(target) as folder:
                self._write(
                    folder, target, name=target.name, read_card=lambda: own_card(target), remote_code=remote_code
                )
        wait()

    @keeping("self")
    def create_model_card(self, repo_id: str | None = None) -> ModelCard:
        """The card that `save_pretrained` and `push_to_hub` write as `README.md`.

        Args:
            repo_id: what the card tells users to load; `None` leaves a placeholder.

        Raises:
            RuntimeError: nothing was pruned yet.
        """
        model, report = self._pruned()
        name = repo_id or "path/to/pruned-model"
        return model_card(model, report, name=name, processor=self.processor, pictures=self._pictures)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        scores: Scores | None = None,
    ) -> CommitInfo | None:
        """Upload what `save_pretrained` saves to the Hub, in one commit; of several processes, the main one does it.

        Args:
            repo_id: `"user/name"`; created if missing. The text of its card outside our part stays.
            private: whether a new repository is private; `None` takes the owner's default.
            token: Hub token; `None` takes the one of `hf auth login` or of HF_TOKEN.
            revision: branch to push to, created from `main` if missing; `None` takes `main`.
            commit_message: the commit's title.
            create_pr: open a pull request instead of committing.
            scores: scores of this model to upload as well, into `optin_scores/`.

        Returns:
            The commit (`oid`, `commit_url`, `pr_url`); `None` on all processes but the main one.

        Raises:
            RuntimeError: nothing was pruned yet.
            ValueError: `repo_id` is no name of a repository, a pull request is to go to a branch, or the scores are of
                another model.
            OfflineModeIsEnabled: the offline flag is set.
            LocalTokenNotFoundError: there is no token.
            ConnectionError: the Hub does not answer.
            HfHubHTTPError: the Hub refuses, or fails more often than its client retries.
        """
        _, report = self._pruned()
        check_type("scores", scores, Scores)
        check_push(repo_id, token=token, revision=revision, create_pr=create_pr)
        if scores is not None:
            scores.check(self.model)
        if not is_main():
            return None
        message = commit_message or commit_title(report)
        with temporary_folder() as folder:

            def written(repo_id: str, card: bytes | None) -> dict[str, Path]:
                self._write(folder, folder, name=repo_id, read_card=lambda: decoded(card), revision=revision)
                if scores is not None:
                    scores.write(folder / SCORES_FOLDER)
                return files_in(folder)

            return push(
                repo_id, written, private=private, token=token, revision=revision, message=message, create_pr=create_pr
            )

    def _write(
        self,
        folder: Path,
        target: Path,
        *,
        name: str,
        read_card: Callable[[], str | None],
        revision: str | None = None,
        remote_code: bool | None = None,
        pruned: tuple[PreTrainedModel, PruningReport] | None = None,
    ) -> None:
        """Write a pruned model, the last one if none is given, with all that goes with it into an empty folder, which
        will become `target`."""
        model, report = pruned or self._pruned()
        write_pruned(
            folder,
            model,
            report,
            self.processor,
            dense=self.model,
            name=name,
            read_card=read_card,
            copy_companions=lambda: self._origin.copy_companions(folder, target, self.processor),
            pictures=self._pictures if pruned is None else self._swept,
            revision=revision,
            remote_code=report.config["remote_code"] if remote_code is None else remote_code,
        )

    def _write_swept(self, target: Path, model: nn.Module, report: PruningReport) -> None:
        """Save a model of a sweep into a folder of its own."""
        with atomic_folder(target) as folder:
            card = partial(own_card, target)
            self._write(folder, target, name=target.name, read_card=card, pruned=(model, report))

    def _models(self) -> dict[str, PreTrainedModel]:
        """The models to measure: the dense one and, if there is one, the pruned one as a user gets it, from disk."""
        if self.pruned_model is None:
            return {"dense": self.model}
        return {"dense": self.model, "pruned": saved_and_loaded(self.pruned_model, self.model)}

    def _pruned(self) -> tuple[PreTrainedModel, PruningReport]:
        if self.pruned_model is None:
            raise RuntimeError("nothing was pruned yet: call prune() first.")
        if self.report is None:
            raise RuntimeError(
                "the last prune() failed after the cut, in its report: the model is pruned_model, whose own "
                "save_pretrained saves it without report and card."
            )
        return self.pruned_model, self.report
