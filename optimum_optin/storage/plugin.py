"""The `transformers` plug-in: `from_pretrained` rebuilds a pruned model and steps aside; saving notes its digest.

The skeleton, still on the meta device, is rewritten to what the config's entry says; after loading, every trace of
quantization is cleared and what is left is an ordinary model. Importing `optimum_optin` registers the plug-in. A folder
saved with remote code brings its own copy of the plug-in, made of this file (`publishing/remote_code.py`).
"""

from __future__ import annotations

import inspect
import json
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from ..digests.digest import check_digest
from ..digests.missing import check_found, note_missing
from ..digests.writing import notes_for, write_digest
from ..files.json_files import read_object
from ..files.model_files import LISTING_FILE
from ..merging.schedule import TokenSchedule
from .auto_map import brings_code, forget_remote_code
from .entry import METHOD, OptinStructureConfig, noted_in
from .rebuild import rebuild
from .structure import structure_from_json

_SAVING = threading.RLock()  # threads that save one model, which has one place for a quantizer
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
        self._compared = check_digest(self.quantization_config.to_dict(), checkpoint_files, "config.json")
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
        check_found(model, self._missing(), getattr(self._entry, "shapes", {}), self._compared)
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


class DigestNotes(OptinHfQuantizer):
    """Stands where transformers asks a quantizer what to note beside the tensors of each file that it writes.

    Args:
        entry: the model's entry.
        state_dict: what to save; `None` for all that the model has.
    """

    def __init__(self, entry: OptinStructureConfig, state_dict: Mapping[str, Any] | None):
        super().__init__(entry)
        self._state_dict = state_dict
        self._notes = notes_for(entry.to_dict())

    def get_state_dict_and_metadata(self, model: PreTrainedModel, *_: Any) -> tuple[Any, dict[str, str]]:
        """What to save, and what to note beside it."""
        return self._state_dict, self._notes


def save_with_digest(save: Callable[..., None], model: PreTrainedModel, *args, **kwargs) -> None:
    """Save a model as transformers does and, if it is pruned, write its digest and a listing of its tensors.

    Args:
        save: the `save_pretrained` of transformers, bound to the model.
        model: the model.
        *args: arguments for `save`.
        **kwargs: more of them.
    """
    given = inspect.signature(save).bind(*args, **kwargs).arguments
    main = given.get("is_main_process", True)
    main = getattr(model, "should_save_on_this_rank", lambda main: main)(main)
    entry, listing = _tied_entry(model), Path(given["save_directory"], LISTING_FILE)
    adapter = getattr(model, "_hf_peft_config_loaded", False)  # it alone is saved
    if main and not adapter and listing.is_file():
        listing.unlink()
    if entry is None or adapter:
        save(*args, **kwargs)
        return
    with _SAVING:
        try:
            model.hf_quantizer = DigestNotes(entry, given.get("state_dict"))
            save(*args, **kwargs)
        finally:
            vars(model).pop("hf_quantizer", None)
    if main:
        _complete(entry, listing.parent)


def _tied_entry(model: PreTrainedModel) -> OptinStructureConfig | None:
    """The entry of a pruned model; `None` for others, and in an earlier format, which has no digest."""
    noted = noted_in(model)
    data = noted if isinstance(noted, Mapping) else noted.to_dict() if noted else {}
    if data.get("quant_method") != METHOD or data.get("format_version") == 1:
        return None
    return OptinStructureConfig(**data)


def _complete(entry: OptinStructureConfig, folder: Path) -> None:
    """Write the digest into what was just saved: files of weights, and the config beside them."""
    if digest := write_digest(entry.to_dict(), folder):
        config = folder / "config.json"
        data = read_object(config)
        data["quantization_config"]["digest"] = digest
        config.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# Not by transformers' decorators: they refuse a name that a folder's remote code took before.
AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = OptinStructureConfig
AUTO_QUANTIZER_MAPPING[METHOD] = OptinHfQuantizer
