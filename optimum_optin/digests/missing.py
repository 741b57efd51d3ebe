"""Missing tensors: what weights on disk lack of a pruned model, which must not be random numbers without a word."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel


def note_missing(model: PreTrainedModel) -> Callable[[], list[str]]:
    """Watch a model while its weights are loaded, in place; the answer says what disk lacked, and ends the watch."""
    adjust, found = model._adjust_missing_and_unexpected_keys, []

    def adjusted(info: Any) -> None:
        adjust(info)
        found.extend(sorted(info.missing_keys))

    def missing() -> list[str]:
        vars(model).pop("_adjust_missing_and_unexpected_keys", None)
        return found

    model._adjust_missing_and_unexpected_keys = adjusted
    return missing


def check_found(model: PreTrainedModel, missing: Collection[str], cut: Mapping[str, Any], compared: bool) -> None:
    """Raise if what a model's folder says it holds was not on disk; a new head that was asked for may be missing.

    Args:
        model: the model as it was loaded.
        missing: its tensors that were not on disk.
        cut: names of those that were cut, which every folder has.
        compared: whether a digest says that all are there that were saved. Else those of the class that was saved are
            expected, but for parts that it leaves out by a switch (a pooler).

    Raises:
        ValueError: names the first of them.
    """
    lost = [name for name in missing if name in cut]
    if not (lost or compared) and type(model).__name__ in (model.config.architectures or ()):
        lost = [name for name in missing if not _is_left_out(model, name)]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ValueError(
            f"{lost[0]}{more} of this {type(model).__name__} is not among the weights on disk: they are incomplete. "
            "Download or save them again."
        )


def _is_left_out(model: PreTrainedModel, name: str) -> bool:
    """Whether a class makes a model without this tensor if one of its switches is set otherwise."""
    base = model.base_model
    prefix = "" if base is model else f"{model.base_model_prefix}."
    parameters = inspect.signature(type(base).__init__).parameters.values()
    for switch in (each for each in parameters if isinstance(each.default, bool)):
        with torch.device("meta"):
            other = type(base)(base.config, **{switch.name: not switch.default})
        if name.startswith(prefix) and name.removeprefix(prefix) not in other.state_dict():
            return True
    return False
