"""The model card: metadata for the Hub, and our part of the page between two markers.

What a person wrote stays: text outside the markers, and metadata that we have no better value for.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from torch import nn
from transformers.utils import logging

from ..files.links import check_inside
from ..models.identity import is_of_transformers, name_of
from ..report import PruningReport
from ..storage.auto_map import REMOTE_FILE
from ..storage.tasks import task_of
from .card_text import card_text
from .hub import CARD_FILE, LARGEST_CARD, read_card

logger = logging.get_logger(__name__)

BEGIN = "<!-- optimum-optin: written by save_pretrained and push_to_hub; write your text outside of this part -->"
END = "<!-- end of optimum-optin -->"
# From the nearest beginning: after one whose end somebody deleted, there may be text of that person.
_PART = re.compile("<!-- optimum-optin:((?!<!-- optimum-optin:).)*?<!-- end of optimum-optin -->", re.DOTALL)

_TAGS = ["optimum-optin", "optin", "pruning", "structured-pruning"]
_FORMAT_TAGS = {"pytorch", "tf", "jax", "flax", "rust", "onnx", "openvino", "coreml", "gguf"}  # files we do not write
_LICENSE = ("license", "license_name", "license_link")
_MOST_METADATA = 2**16  # characters; the Hub's client takes time with their square
# Tasks that models of several kinds are measured on, by the Hub's names; others are data sets, such as `glue/sst2`.
_HUB_TASKS = {
    "image-classification": "image-classification",
    "semantic-segmentation": "image-segmentation",
    "object-detection": "object-detection",
    "perplexity": "text-generation",
    "multiple-choice": "text-generation",
    "summarization": "summarization",
    "translation": "translation",
    "automatic-speech-recognition": "automatic-speech-recognition",
    "audio-classification": "audio-classification",
}
_OURS = " (optimum-optin)"  # ends the metric names that we measured, so that the next card replaces them


def model_card(
    model: nn.Module,
    report: PruningReport,
    *,
    name: str,
    revision: str | None = None,
    processor: Any = None,
    folder: Path | None = None,
    pictures: Collection[str] = (),
    existing: str | None = None,
) -> ModelCard:
    """The card of a pruned model.

    Args:
        model: the pruned model; its class gives the task, its config the base model.
        report: holds every figure of the card; what it lacks, the card leaves out.
        name: what the card tells users to load, a Hub id or a folder.
        revision: the branch to load from.
        processor: its tokenizer or the like.
        folder: the folder that the model was saved to; `None` if there are no files yet.
        pictures: names of the files beside the card that it shows.
        existing: the card to update. If its metadata cannot be read, they are kept as a comment.
    """
    title = name.rpartition("/")[2]
    library = "transformers" if is_of_transformers(model) else "pytorch"
    ours = _metadata(title, task_of(model), report, _base_card(model, report), library)
    card = ModelCard(f"---\n{{}}\n---\n\n# {title}\n") if existing is None else _parse(existing)
    _merge(card.data, ours)
    written = card_text(
        model,
        report,
        name=name,
        revision=revision,
        processor=processor,
        weights=folder and weight_bytes(folder),
        remote_code=folder is not None and (folder / REMOTE_FILE).is_file(),
        pictures=pictures,
    )
    part = f"{BEGIN}\n\n{written}\n{END}"
    parts = itertools.chain([part], itertools.repeat(""))  # a second one, from a copy, would be out of date
    card.text, found = _PART.subn(lambda _: next(parts), card.text)
    if not found:
        card.text = f"{card.text.rstrip()}\n\n{part}\n"
    return card


def card_or_none(
    make: Callable[[str | None], ModelCard], read: Callable[[], str | None], *, name: str
) -> ModelCard | None:
    """A card whatever happens, or `None` to leave the present one as it is: no card is worth a lost model.

    Args:
        make: makes the new card from the text of the present one.
        read: reads that text; `None` if there is no card.
        name: see `model_card`.
    """
    existing: str | None = ""  # until it is read, it may hold somebody's text
    try:
        existing = read()
        card = make(existing)
        _check_size("the new card", len(str(card).encode()))  # what cannot be written fails here, too
        return card
    except Exception as error:
        kept = "has only a heading" if existing is None else "stays as it is"
        logger.warning(f"the model card of {name} {kept}, since no other could be made: {error!r:.300}")
    if existing is not None:
        return None
    title = name.rpartition("/")[2].encode(errors="replace").decode()
    part = f"{BEGIN}\n\nPruned with optimum-optin; optin_report.json has the figures.\n\n{END}"
    data = ModelCardData(library_name="transformers", tags=_TAGS)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{part}\n")


def decoded(content: bytes | None) -> str | None:
    """The text of a card.

    Raises:
        ValueError: the content is not UTF-8, or too long for a card.
    """
    if content is None:
        return None
    _check_size("the README.md there", len(content))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the README.md there is not UTF-8 ({error}): convert it, and save again") from error


def _check_size(what: str, size: int) -> None:
    if size > LARGEST_CARD:
        raise ValueError(f"{what} has {size:,} bytes, more than a card of {LARGEST_CARD:,}")


def own_card(folder: Path) -> str | None:
    """The text of a folder's card; `None` if it has none.

    Raises:
        ValueError, OSError: the card cannot be read, or is a link that leads out of the folder.
    """
    card = folder / CARD_FILE
    if not card.is_file():
        return None
    check_inside(card)
    _check_size(str(card), card.stat().st_size)
    return decoded(card.read_bytes())


def own_text(content: str, title: str) -> bool:
    """Whether a card says more than we wrote: another heading than `# title`, or text outside of our part."""
    lines = _PART.sub("", _parse(content).text).split("\n")
    return [line.strip() for line in lines if line.strip()] != [f"# {title}"]


def retitled(content: str, title: str) -> str:
    """A card without text of its own, under another heading."""
    card = _parse(content)
    card.text = f"\n# {title}\n"
    if card.data.model_name:
        card.data.model_name = title
    return str(card)


def weight_bytes(folder: Path) -> int:
    """Size of a folder's weight files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _base_card(model: nn.Module, report: PruningReport) -> ModelCardData:
    """The metadata of the dense model's card; empty if there is none, or it cannot be read.

    On the Hub, a stranger must be able to read it: the report may be anybody's and name a repository of this user, and
    what a private card says is not for the card of a model that may be public.
    """
    path = name_of(model)
    if not report.base and not path:  # the model was made in memory
        return ModelCardData()
    try:
        if report.base:
            base = report.base
            content = decoded(read_card(base.repo_id, token=False, revision=base.commit, retries=0))
        else:
            content = own_card(Path(path))
        return ModelCardData() if content is None else _card_of(content, ignore_metadata_errors=True).data
    except Exception as error:  # no network, no card: never a reason to lose a pruned model
        logger.debug(f"no card of {path}: {error}")
        return ModelCardData()


def _metadata(title: str, task: str | None, report: PruningReport, base: ModelCardData, library: str) -> ModelCardData:
    # A local folder's own card may name the model that it came from.
    base_model = report.base.repo_id if report.base else _plain(base.get("base_model"))
    calibration = report.calibration and report.calibration.dataset
    results = _results(report, task)
    return ModelCardData(
        **{name: _plain(base.get(name)) for name in ("language", *_LICENSE)},
        library_name=library,
        pipeline_tag=task,
        base_model=base_model,
        # The Hub knows finetune, adapter, merge and quantized. Nothing was trained, added or merged: "quantized" is
        # where it lists smaller versions of the same model.
        base_model_relation="quantized" if base_model else None,
        tags=_TAGS + [tag for tag in _listed(_plain(base.tags)) if tag not in _FORMAT_TAGS],
        datasets=_union(_listed(_plain(base.datasets)), _listed(calibration)) or None,
        metrics=_union([result.metric_type for result in results]) or None,
        model_name=title if results else None,
        eval_results=results or None,
    )


def _results(report: PruningReport, task: str | None) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=_HUB_TASKS.get(entry.task, task) or "other",
            dataset_type=entry.dataset,
            dataset_name=entry.dataset if entry.task in _HUB_TASKS else entry.task,
            dataset_config=entry.config or None,
            dataset_split=entry.split,
            metric_type=metric,
            metric_name=metric + _OURS,
            metric_value=value.pruned,
        )
        for entry in report.evaluations
        for metric, value in entry.metrics.items()
        if value.pruned is not None
    ]


def _card_of(content: str, **options: bool) -> ModelCard:
    """A card of the Hub's client, which reads the metadata.

    Raises:
        ValueError: there are too many metadata, or, as other errors, they cannot be read.
    """
    block = REGEX_YAML_BLOCK.search(content)
    if block is not None and len(block.group(2)) > _MOST_METADATA:
        raise ValueError(f"the card's metadata have {len(block.group(2)):,} characters, more than {_MOST_METADATA:,}")
    return ModelCard(content, **options)


def _parse(content: str) -> ModelCard:
    """A card whose metadata are kept as a comment if they cannot be read."""
    try:
        return _card_of(content)
    except Exception as error:  # anything may stand there, and break YAML or the reading of results in many ways
        block = REGEX_YAML_BLOCK.search(content)
        if block is None:
            raise
        logger.warning(f"the card's metadata cannot be read and are kept in it as a comment: {error}")
        kept = block.group(2).replace("-->", "-- >")
        text = content[block.end() :]
        return ModelCard(f"---\n{{}}\n---\n\n<!-- metadata that could not be read:\n{kept}\n-->\n{text}")


def _merge(data: ModelCardData, ours: ModelCardData) -> None:
    """Bring our metadata into a card's, in place.

    Base model, task and library are ours; language and licence stay if the card has them; tags, data sets and metrics
    add up; our results replace our earlier ones.
    """
    held = {"language"} if data.get("language") else set()
    held |= set(_LICENSE) if data.get("license") else set()
    kept = [result for result in data.eval_results or [] if not str(result.metric_name).endswith(_OURS)]
    results = kept + (ours.eval_results or [])
    lists = {key: _union(_listed(data.get(key)), _listed(ours.get(key))) for key in ("tags", "datasets", "metrics")}
    title = data.model_name or ours.model_name
    for key, value in vars(ours).items():
        if value is not None and key not in held:
            data[key] = value
    for key, value in lists.items():
        data[key] = value or None
    data.eval_results = results or None
    data.model_name = title if results else None


def _union(*lists: Sequence[Any]) -> list[Any]:
    """The items of all lists, each once; what is no name, which nobody compares, as often as it is there."""
    items = [item for one in lists for item in one]
    names = dict.fromkeys(item for item in items if isinstance(item, str))
    return [*names, *(item for item in items if not isinstance(item, str))]


def _plain(value: Any) -> Any:
    """A name or a list of names from somebody's metadata, without what cannot be a name.

    YAML turns names that look like numbers or dates into these, and `no` and `yes` into truth values.
    """
    if isinstance(value, (list, tuple)):
        return [name for name in map(_name, value) if name is not None] or None
    return _name(value)


def _name(value: Any) -> str | None:
    if isinstance(value, (int, float, datetime.date)) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else None


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
