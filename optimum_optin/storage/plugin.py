"""The `transformers` plug-in: `from_pretrained` rebuilds a pruned model and then steps aside.

The skeleton, still on the meta device, is rewritten to what the config's entry says; after loading, every trace of
quantization is cleared and what is left is an ordinary model. Importing `optimum_optin` registers the plug-in. A folder
saved with remote code brings its own copy of the plug-in, made of this file (`publishing/remote_code.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from ..merging.schedule import TokenSchedule
from .auto_map import brings_code, forget_remote_code
from .digest import check_digest
from .entry import METHOD, OptinStructureConfig
from .missing import check_found, note_missing
from .rebuild import rebuild
from .structure import structure_from_json

EARLIER_FORMATS: dict[int, Callable[..., None]] = {}
"""Format -> `convert(model, structure, schedule)`. Remote code holds none, as these need to know architectures."""


class OptinHfQuantizer(HfQuantizer):
    """Rewrites the skeleton before the weights are loaded, then removes itself."""

    requires_calibration = True

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs
    ) -> None:
        if checkpoint_files is not None:  # without those that a class takes beside the model
            more = getattr(type(model.config), "extra_files", ())
            checkpoint_files = [file for file in map(Path, checkpoint_files) if file.name not in more]
        self._compared = check_digest(self.quantization_config, checkpoint_files, "config.json")
        self._missing = note_missing(model) if checkpoint_files else list
        del model.config.quantization_config  # what rewrites the model notes it again, now that it is true
        self._rewrite(model)
        self._entry = model.config.quantization_config
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        # Folders saved before weights without elements were left out hold them. By name: remote code has its own class.
        self._empty = {path: module for path, module in model.named_modules() if hasattr(module, "hold")}
        self._left_out = {re.escape(f"{path}.{name}") for path, module in self._empty.items() for name in module.empty}
        model._keys_to_ignore_on_load_unexpected |= self._left_out

    def _rewrite(self, model: PreTrainedModel) -> None:
        """Cut the skeleton; a class from a folder's remote code brings the code that the folder was saved with."""
        entry = self.quantization_config
        if entry.format_version > 1:
            data = {name: value for name, value in entry.to_dict().items() if name != "digest"}
            getattr(model, "optin_rebuild", rebuild)(model, data)
            return
        convert = getattr(model, "optin_convert", None) or EARLIER_FORMATS.get(1)
        if convert is None:
            raise ValueError(
                "this model was saved in format 1 of optimum-optin, which this remote code cannot read: "
                "`import optimum_optin` (pip install optimum-optin) before from_pretrained."
            )
        schedule = None if entry.tokens is None else TokenSchedule.from_json(entry.tokens)
        convert(model, structure_from_json(entry.structure), schedule)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs) -> None:
        for name, parameter in model.named_parameters():
            if parameter.shape != self._shapes[name]:
                raise ValueError(
                    f"{name} has shape {tuple(parameter.shape)} on disk, but {tuple(self._shapes[name])} here. If that "
                    "is meant (ignore_mismatched_sizes=True for a new head), it needs transformers 5.23 or newer; if "
                    "not, the folder is damaged."
                )
        check_found(model, self._missing(), self._entry.shapes, self._compared)
        model.config.quantization_config = self._entry  # transformers has put back the one on disk
        model._keys_to_ignore_on_load_unexpected -= self._left_out
        for module in self._empty.values():  # loading fills parameters alone
            module.hold({name: torch.empty_like(getattr(module, name), device=model.device) for name in module.empty})
        for name in ("hf_quantizer", "quantization_method", "is_quantized"):
            vars(model).pop(name, None)
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                vars(module.config).pop("_is_quantized", None)
        if not brings_code(type(model)):
            forget_remote_code(model)

    def is_serializable(self) -> bool:
        """Always: a pruned model is made of ordinary weights."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Always: a pruned model is made of ordinary weights."""
        return True


# Not by transformers' decorators: they refuse a name that a folder's remote code took before.
AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = OptinStructureConfig
AUTO_QUANTIZER_MAPPING[METHOD] = OptinHfQuantizer
