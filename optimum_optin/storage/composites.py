"""Pruned models inside others (an encoder with a decoder, towers of a dual model): refused when they are saved.

transformers looks for a pruned structure in the config of the model that is loaded, not in those of its parts. So a
composite could be saved, maybe after long training, and never be loaded again. transformers has no place to say so but
`save_pretrained` itself, so importing this package wraps it; what may be saved has its digest written there, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from .auto_map import brings_code
from .entry import METHOD, schedule_of_model
from .integrity import is_rebuilt
from .plugin import save_with_digest
from .record import check_recorded


def check_composite(model: PreTrainedModel) -> None:
    """Raise if a model could not be loaded once it is saved, because its config does not say how it was pruned.

    Raises:
        ValueError: names the part that was pruned; or the model is a part of a pruned one, or dense but made from a
            pruned model's config.
    """
    structure = _structure(model.config)
    if structure is None and hasattr(model, "optin_whole"):
        raise ValueError(
            f"this {type(model).__name__} is a part of a pruned {model.optin_whole}, whose config alone says what was "
            "cut: saved by itself, it could never be loaded. Save the whole, or prune the dense part by itself."
        )
    for path, module in model.named_modules():
        part = _structure(module.config) if path and isinstance(module, PreTrainedModel) else None
        of_another = structure is None and hasattr(module, "optin_whole")
        if (of_another or (part is not None and part != structure)) and not _is_rebuilt(model):
            raise ValueError(
                f"{type(model).__name__}.{path} was pruned, which the config of the whole cannot say: saved, it could "
                f"never be loaded. Save the part alone, model.{path}.save_pretrained(...), and the others likewise, "
                "and put it together again when they are loaded."
            )
    if structure is not None:
        check_recorded(model)


def _is_rebuilt(model: PreTrainedModel) -> bool:
    """Whether the model's class (the user's own) cuts its parts itself, so that it can be loaded."""
    merging = any(schedule_of_model(part) for part in model.modules() if isinstance(part, PreTrainedModel))
    return not merging and is_rebuilt(model)


def _structure(config: PreTrainedConfig) -> Mapping[str, Mapping[str, Any]] | None:
    """The structure that a config notes, in its JSON form; `None` for a dense model."""
    entry: Any = getattr(config, "quantization_config", None)
    data = entry if isinstance(entry, Mapping) else vars(entry) if entry else {}
    return data.get("structure") if data.get("quant_method") == METHOD else None


def _wrapped(save_pretrained: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(save_pretrained)
    def checked(self: PreTrainedModel, *args, **kwargs) -> None:
        check_composite(self)
        if brings_code(type(self)):  # it writes a digest itself, if it reads one
            save_pretrained(self, *args, **kwargs)
        else:
            save_with_digest(functools.partial(save_pretrained, self), self, *args, **kwargs)

    return checked


PreTrainedModel.save_pretrained = _wrapped(PreTrainedModel.save_pretrained)
