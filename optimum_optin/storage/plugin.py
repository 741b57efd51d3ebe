"""The `transformers` plug-in: `from_pretrained` rebuilds a pruned model and then steps aside.

A saved model's `config.json` carries its structure under `quantization_config`, the one place where
`transformers` lets a package act before weights are loaded. The skeleton, still on the meta device, is
rewritten to the structure; after loading, every trace of quantization is cleared and what is left is
an ordinary model. Importing `optimum_optin` registers the plug-in. A folder saved with remote code brings its own
copy of the plug-in, made of this file (`remote_code.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..architectures.group import Group
from ..discovery.declared import declared_groups as find_groups
from ..editing.surgery import rewrite
from ..merging.hooks import attach_merging, check_attachable
from ..merging.schedule import TokenSchedule
from .auto_map import own_code
from .structure import Structure, compose, masks_of, structure_from_json, structure_to_json

METHOD = "optimum_optin"  # without the package, transformers' warning shows the user this name
FORMAT_VERSION = 1


class OptinStructureConfig(QuantizationConfigMixin):
    """The `quantization_config` entry of a pruned model.

    Args:
        structure: JSON form of the structure, see `optimum_optin.storage.structure`.
        format_version: version of that form.
        tokens: JSON form of the schedule of merging tokens (`TokenSchedule.to_json`); `None` for none.

    Raises:
        ValueError: a newer format, or a damaged entry.
    """

    def __init__(
        self,
        structure: Mapping[str, Mapping] | None = None,
        format_version: int = FORMAT_VERSION,
        tokens: Mapping | None = None,
        **kwargs,
    ):
        if format_version != FORMAT_VERSION:
            raise ValueError(
                f"this model was saved in format {format_version} of optimum-optin, which knows format "
                f"{FORMAT_VERSION}: upgrade with `pip install -U optimum-optin`."
            )
        structure_from_json(structure)
        if tokens is not None:
            TokenSchedule.from_json(tokens)
        self.quant_method = METHOD
        self.format_version = format_version
        self.how_to_load = _HOW_TO_LOAD
        self.structure = structure
        self.tokens = tokens

    def get(self, name: str, default: Any = None) -> Any:
        """An entry of the JSON form: transformers asks the config of a loaded model as if it were a dict."""
        return self.to_dict().get(name, default)


# For whoever follows the advice in that warning, to delete the entry in config.json.
_HOW_TO_LOAD = (
    "This model is pruned, not quantized. Do not delete this entry: `import optimum_optin` (pip install optimum-optin) "
    "before from_pretrained."
)


class OptinHfQuantizer(HfQuantizer):
    """Rewrites the skeleton before the weights are loaded, then removes itself."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs) -> None:
        structure = structure_from_json(self.quantization_config.structure)
        tokens = self.quantization_config.tokens
        schedule = None if tokens is None else TokenSchedule.from_json(tokens)
        del model.config.quantization_config  # convert_model notes it again, now that it is true
        # A class from a folder's remote code brings the code and the row that the folder was saved with.
        getattr(model, "optin_convert", convert_model)(model, structure, schedule)
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        # Folders saved before weights without elements were left out hold them. By name: remote code has its own class.
        self._empty = {path: module for path, module in model.named_modules() if hasattr(module, "hold")}
        self._left_out = {re.escape(f"{path}.{name}") for path, module in self._empty.items() for name in module.empty}
        model._keys_to_ignore_on_load_unexpected |= self._left_out

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs) -> None:
        for name, parameter in model.named_parameters():
            if parameter.shape != self._shapes[name]:
                raise ValueError(
                    f"{name} has shape {tuple(parameter.shape)} on disk, but {tuple(self._shapes[name])} here. If that "
                    "is meant (ignore_mismatched_sizes=True for a new head), it needs transformers 5.23 or newer; if "
                    "not, the folder is damaged."
                )
        model._keys_to_ignore_on_load_unexpected -= self._left_out
        for module in self._empty.values():  # loading fills parameters alone
            module.hold({name: torch.empty_like(getattr(module, name), device=model.device) for name in module.empty})
        for name in ("hf_quantizer", "quantization_method", "is_quantized"):
            vars(model).pop(name, None)
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                vars(module.config).pop("_is_quantized", None)
        if not hasattr(model, "optin_convert"):
            _forget_remote_code(model)

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


def convert_model(model: PreTrainedModel, structure: Structure, schedule: TokenSchedule | None = None) -> None:
    """Cut a model, or its skeleton on the meta device, to `structure`, in place, and note it in its config.

    Args:
        model: a dense model, or one whose groups have the units that `structure` counts.
        structure: what to keep; groups that it does not name stay as they are.
        schedule: how many tokens to merge; `None` for none.

    Raises:
        ValueError: the structure or the schedule does not fit the model; the message names the entry.
    """
    groups = find_groups(model)
    masks = masks_of(structure, groups)
    if schedule is not None:
        check_attachable(model, groups, schedule)
    rewrite(model, groups, masks)
    record_structure(model, structure)
    if schedule is not None:
        merge_tokens_of(model, schedule)


def merge_tokens_of(model: PreTrainedModel, schedule: TokenSchedule) -> None:
    """Let a model merge tokens from now on, in place, and note it in its config beside the structure.

    Raises:
        ValueError: see `attach_merging`.
    """
    attach_merging(model, find_groups(model), schedule)
    model.config.quantization_config.tokens = schedule.to_json()


def schedule_of_model(model: PreTrainedModel) -> TokenSchedule | None:
    """The schedule by which a model merges tokens; `None` if it merges none."""
    entry: Any = getattr(model.config, "quantization_config", None)
    data = entry if isinstance(entry, Mapping) else vars(entry) if entry else {}
    tokens = data.get("tokens") if data.get("quant_method") == METHOD else None
    return None if tokens is None else TokenSchedule.from_json(tokens)


def structure_of_model(model: PreTrainedModel) -> Structure:
    """The structure that earlier prunings left; empty for a dense model.

    Raises:
        ValueError: the model is quantized, so that its linears cannot be sliced.
    """
    entry: Any = getattr(model.config, "quantization_config", None)
    if entry is None:
        return {}
    data = entry if isinstance(entry, Mapping) else entry.to_dict()
    method = data.get("quant_method")
    if method != METHOD:
        raise ValueError(f"this model is quantized ({method}): prune the unquantized model, then quantize the result.")
    return structure_from_json(data["structure"])


def record_structure(model: PreTrainedModel, later: Structure) -> Structure:
    """Note in the model's config what was just cut, on top of earlier prunings; return the whole structure."""
    structure = compose(structure_of_model(model), later)
    schedule = schedule_of_model(model)
    tokens = None if schedule is None else schedule.to_json()
    model.config.quantization_config = OptinStructureConfig(structure_to_json(structure), tokens=tokens)
    for part in model.modules():  # a tower, whose own config says nothing of it
        if isinstance(part, PreTrainedModel) and part.config is not model.config:
            part.optin_whole = type(model).__name__
    return structure


def check_structure(model: PreTrainedModel) -> None:
    """Raise if the model's modules are not what its config says earlier prunings left.

    Raises:
        ValueError: an entry does not fit, which is named; or the model merges tokens, and then it cannot be pruned any
            more.
    """
    if schedule_of_model(model) is not None:
        raise ValueError("this model merges tokens already, which comes last: prune the model that it was made from.")
    check_units(model, find_groups(model))


def check_units(model: PreTrainedModel, groups: Iterable[Group]) -> None:
    """Raise if a model's groups do not have the units that its config says earlier prunings left.

    Raises:
        ValueError: names the first entry that does not fit.
    """
    units = {group.key: group.units for group in groups}
    for key, entry in structure_of_model(model).items():
        if len(entry.kept) != units.get(key, 0):
            raise ValueError(
                f"the config says that {key} keeps {len(entry.kept)} units, but the model has {units.get(key, 0)}: a "
                "model made from a pruned model's config is dense. Load it with from_pretrained, or delete "
                "config.quantization_config."
            )


def _forget_remote_code(model: PreTrainedModel) -> None:
    """Take our own remote code out of `auto_map`, in place: a model of an ordinary class is saved without it."""
    others = own_code(model.config)
    vars(model.config).pop("auto_map", None)
    if others:
        model.config.auto_map = others
