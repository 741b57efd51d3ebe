"""The classes of a model, by name: whether it is one for a task, and which of its classes a data set's names mean."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn
from transformers.utils import logging

from ..reading.samples import is_missing
from ..storage.tasks import class_of
from .samples import AnnotatedSamples, check_there

logger = logging.get_logger(__name__)

_SAYS_NOTHING = re.compile(r"(label_?)?\d+")  # `LABEL_0` and `0`
_WORDNET = re.compile(r"n\d{8}")  # ImageNet's folders, whose order is that of the classes


def check_kind(
    model: nn.Module, processor: object, task: str, kinds: Sequence[str], *, needs: str = "image processor"
) -> None:
    """Raise if a model has another head than a task needs, or there is no processor.

    Args:
        model: a class of the user's own may be anything; its outputs will tell.
        processor: its processor.
        task: the task's name.
        kinds: endings of the classes that fit.
        needs: what the processor is called in messages.

    Raises:
        ValueError: says what fits.
    """
    fits = any(kind.__name__.endswith(ending) for kind in type(model).__mro__ for ending in kinds)
    if not fits and class_of(model) is not None:
        raise ValueError(
            f"{task} needs a model with such a head (...{', ...'.join(kinds)}), got {type(model).__name__}: load the "
            "model with its own task, or measure it on that."
        )
    if processor is None:
        raise ValueError(f"{task} needs the model's {needs}: pass it as processor=.")


def labels_of(model: nn.Module, given: Sequence[str] | None = None) -> list[str]:
    """The names of a model's classes, in the order of its outputs.

    Args:
        model: the model.
        given: the names, where the user gives them.

    Raises:
        ValueError: the model's config does not tell, or they are no names.
    """
    if given is not None:
        if isinstance(given, str) or not given or not all(isinstance(name, str) for name in given):
            raise ValueError(f"labels={given!r:.80} must be a list of the names of the model's classes.")
        return list(given)
    named = getattr(getattr(model, "config", None), "id2label", None)
    if not named or set(named) != set(range(len(named))):
        raise ValueError(
            f"this {type(model).__name__} does not say which classes it has: give their names in the order of its "
            "outputs, labels=['cat', ...], or set config.id2label."
        )
    return [str(named[index]) for index in range(len(named))]


def class_indices(names: Sequence[str], labels: Sequence[str], source: str) -> list[int]:
    """For each class of a data set, the model's index of it.

    Classes are matched by name, whatever case, spaces, hyphens and underscores. Only where the names of one side say
    nothing (`LABEL_0`, `0`) or are ImageNet's folders (`n01440764`), and both have equally many, by their order, with
    a warning.

    Args:
        names: the data set's classes, in its order.
        labels: the model's classes, in its order.
        source: what messages call the data set.

    Raises:
        ValueError: classes that the model does not have; names them.
    """
    known = {_plain(label): index for index, label in enumerate(labels)}
    missing = [name for name in names if _plain(name) not in known]
    if not missing:
        return [known[_plain(name)] for name in names]
    unnamed = any(all(_SAYS_NOTHING.fullmatch(_plain(name)) for name in side) for side in (names, labels))
    if len(names) == len(labels) and (unnamed or all(map(_WORDNET.fullmatch, names))):
        logger.warning(
            f"the classes of {source} are called {_some(names)}, the model's {_some(labels)}: they are matched by "
            "their order; check that it is the same."
        )
        return list(range(len(names)))
    raise ValueError(
        f"{source} has classes that the model does not know: {_some(missing)}. It knows {_some(labels)}: rename them, "
        "or take a model for these classes."
    )


def target_indices(samples: AnnotatedSamples, known: Sequence[str]) -> list[int]:
    """The model's class of each sample.

    Args:
        samples: samples with a class's name or index as their annotation.
        known: the model's classes, in the order of its outputs.

    Raises:
        ValueError: a sample without a class, or with one that the model does not have.
    """
    names = getattr((getattr(samples.rows, "features", None) or {}).get(samples.target), "names", None)
    labels = samples.targets()
    for place, label in enumerate(labels):
        if is_missing(label):
            check_there(label, samples.name(place), "label")
    used = sorted(set(labels), key=str)
    if names is None and all(isinstance(label, str) for label in used):
        indices = class_indices(used, known, samples.source)
    else:
        for label in used:
            place = labels.index(label)
            if isinstance(label, bool) or not isinstance(label, int):
                name = samples.name(place)
                raise ValueError(f"{name} has the label {label!r}: it must be a class's name or index.")
            if names is not None and not 0 <= label < len(names):
                raise ValueError(
                    f"{samples.name(place)} has the label {label}, which is none of the {len(names)} classes of "
                    f"{samples.source}: this split may have no labels."
                )
            if names is None:
                check_index(label, len(known), samples.name(place))
        indices = used if names is None else _indices(names, used, known, samples)
    index_of = dict(zip(used, indices, strict=True))
    return [index_of[label] for label in labels]


def check_index(index: int, classes: int, name: str) -> None:
    """Raise if a class index of a sample is none of the model's.

    Raises:
        ValueError: names the sample and the index.
    """
    if not 0 <= index < classes:
        raise ValueError(f"{name} has the label {index}, and the model {classes} classes, 0 to {classes - 1}.")


def _indices(names: Sequence[str], used: Sequence[int], known: Sequence[str], samples: AnnotatedSamples) -> list[int]:
    """The model's index of each class that is used; classes without samples do not matter, unless order decides."""
    if len(names) == len(known):
        every = class_indices(names, known, samples.source)
        return [every[label] for label in used]
    return class_indices([names[label] for label in used], known, samples.source)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", str(name).strip().lower())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{', '.join(map(str, names[:8]))}{more}"
