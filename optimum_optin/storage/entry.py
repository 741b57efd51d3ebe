"""The entry of a pruned model in its config: what was cut, and all that a loader must set; format 2, and format 1.

It is JSON under `quantization_config`, the one place where `transformers` lets a package act before weights are loaded.
Whatever a file says is checked here for its form, and against the model's own skeleton in `rebuild.py`, before anything
is made of it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..merging.schedule import TokenSchedule
from .structure import MOST_UNITS, Structure, selected_from_json, structure_from_json

METHOD = "optimum_optin"  # without the package, transformers' warning shows the user this name
FORMAT_VERSION = 2
READER = 3  # counts what is read: 3 is format 2 with a digest
ATTRIBUTE = "optin_structure"  # of a plain module, which has no config to note it in
STRUCTURE_FILE = "optin_structure.json"  # where it is written then
# For whoever follows the advice in that warning, to delete the entry in config.json.
_HOW_TO_LOAD = (
    "This model is pruned, not quantized. Do not delete this entry: `import optimum_optin` (pip install optimum-optin) "
    "before from_pretrained."
)


class OptinStructureConfig(QuantizationConfigMixin):
    """The `quantization_config` entry of a pruned model.

    Names and paths are those in memory, below the model that was saved. Format 1 has `structure` and `tokens` alone.

    Args:
        structure: what each group kept, for people and for further prunings; see `optimum_optin.storage.structure`.
        format_version: version of this form.
        tokens: the schedule of merging tokens (`TokenSchedule.to_json`); `None` for none.
        transformers: the version of transformers that the model was saved with.
        base: path of the base model in the model that was saved, without its head; `""` if it has none.
        shapes: name -> shape of each parameter and buffer that was cut.
        counters: path -> value of each attribute that counts units.
        selectors: path of a module -> name of its argument that carries a bias of all heads -> heads that it picks, and
            of how many (`"0-4,7 of 12"`).
        stand_ins: path of a module that does not run any more -> what stands in its place returns (`StandIn`).
        removed: an earlier form of this: path of an attention without heads -> name of the linear inside whose bias is
            left; `""` for none.
        without: paths of modules that are gone.
        merging: the layers that merge tokens, or see merged ones (`MergingLayer`).
        digest: that of the entry (`structure`) and of the tensors beside it (`tensors`), see `digests/`; `None` for a
            model in memory, or in a folder of an earlier version.

    Raises:
        ValueError: a newer format, an unknown name, or a damaged entry.
    """

    newest = READER  # asked by the remote code of another version
    digest: Mapping[str, str] | None = None

    def __init__(
        self,
        structure: Mapping[str, Mapping] | None = None,
        format_version: int = FORMAT_VERSION,
        tokens: Mapping | None = None,
        *,
        transformers: str = transformers_version,
        base: str = "",
        shapes: Mapping[str, list[int]] | None = None,
        counters: Mapping[str, int] | None = None,
        selectors: Mapping[str, Mapping[str, str]] | None = None,
        stand_ins: Mapping[str, Mapping[str, Any]] | None = None,
        removed: Mapping[str, str] | None = None,
        without: list[str] | None = None,
        merging: list[Mapping[str, Any]] | None = None,
        digest: Mapping[str, str] | None = None,
        **others,
    ):
        if type(format_version) is not int or not 1 <= format_version <= FORMAT_VERSION:
            raise ValueError(
                f"this model was saved in format {format_version} of optimum-optin, which knows formats up to "
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
        if format_version == 1:
            later = {"base": base, "shapes": shapes, "counters": counters, "selectors": selectors, "without": without}
            later |= {"stand_ins": stand_ins, "removed": removed, "merging": merging, "digest": digest}
            others |= {name: value for name, value in later.items() if value}
        if unknown := sorted(set(others) - {"quant_method", "how_to_load"}):
            raise ValueError(
                f"quantization_config of format {format_version} has no {', '.join(unknown):.200}: the file is "
                "damaged, or was saved by a newer version of optimum-optin (pip install -U optimum-optin)."
            )
        if format_version == 1:
            return
        self.transformers = transformers
        self.base = base
        self.shapes = shapes or {}
        self.counters = counters or {}
        self.selectors = selectors or {}
        removed, stand_ins = ({} if each is None else each for each in (removed, stand_ins))
        _check_form("removed", removed)
        _check_form("stand_ins", stand_ins)
        self.stand_ins = {path: attention_without(reader) for path, reader in removed.items()}
        self.stand_ins |= stand_ins
        self.without = without or []
        self.merging = merging or []
        if digest is not None:  # not of a model in memory, which may change
            self.digest = digest
        for name in _FORMS.keys() & vars(self).keys():
            _check_form(name, vars(self)[name])

    def get(self, name: str, default: Any = None) -> Any:
        """An entry of the JSON form: transformers asks the config of a loaded model as if it were a dict."""
        return self.to_dict().get(name, default)


def attention_without(reader: str) -> dict[str, Any]:
    """The entry of a stand-in for an attention, in the form that it had when there were no others."""
    form = {"argument": "hidden_states", "position": 0, "returns": 2, "width": 0, "cache": "", "cache_layer": 0}
    return {**form, "reader": reader}


def noted_in(model: nn.Module) -> Any:
    """The entry as it is noted in a model's config or, of a plain module, in an attribute; `None` for a dense model."""
    if isinstance(model, PreTrainedModel):
        return getattr(model.config, "quantization_config", None)
    return vars(model).get(ATTRIBUTE)


def entry_of(model: nn.Module) -> OptinStructureConfig | None:
    """A copy of the entry that is noted on a model; `None` for a dense model.

    Raises:
        ValueError: the model is quantized, so that its linears cannot be sliced; or the entry is damaged.
    """
    entry = noted_in(model)
    if entry is None:
        return None
    data = copy.deepcopy(dict(entry)) if isinstance(entry, Mapping) else entry.to_dict()
    method = data.get("quant_method")
    if method != METHOD:
        raise ValueError(f"this model is quantized ({method}): prune the unquantized model, then quantize the result.")
    return OptinStructureConfig(**data)


def structure_of_model(model: nn.Module) -> Structure:
    """The structure that earlier prunings left; empty for a dense model.

    Raises:
        ValueError: see `entry_of`.
    """
    entry = entry_of(model)
    return structure_from_json(entry.structure) if entry else {}


def schedule_of_model(model: nn.Module) -> TokenSchedule | None:
    """The schedule by which a model merges tokens; `None` if it merges none."""
    entry = noted_in(model)
    data = entry if isinstance(entry, Mapping) else vars(entry) if entry else {}
    tokens = data.get("tokens") if data.get("quant_method") == METHOD else None
    return None if tokens is None else TokenSchedule.from_json(tokens)


def _check_form(name: str, value: Any) -> None:
    form, fits = _FORMS[name]
    if not fits(value):
        raise ValueError(f"quantization_config.{name} must be {form}, got {value!r:.120}: config.json is damaged.")


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _texts(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and all(isinstance(each, str) for each in value)


def _are_shapes(value: Any) -> bool:
    return _texts(value, Mapping) and all(
        isinstance(shape, (list, tuple)) and all(map(_count, shape)) for shape in value.values()
    )


def _are_counters(value: Any) -> bool:
    return _texts(value, Mapping) and all(map(_count, value.values()))


def _are_selectors(value: Any) -> bool:
    return _texts(value, Mapping) and all(
        _texts(each, Mapping) and all(selected_from_json(kept) is not None for kept in each.values())
        for each in value.values()
    )


def _are_removed(value: Any) -> bool:
    return _texts(value, Mapping) and all(isinstance(each, str) and "." not in each for each in value.values())


def _are_stand_ins(value: Any) -> bool:
    return _texts(value, Mapping) and all(map(_is_stand_in, value.values()))


def _is_stand_in(value: Any) -> bool:
    if not isinstance(value, Mapping) or set(value) != {*_TEXTS_OF_STAND_INS, *_MOST_OF_STAND_INS}:
        return False
    numbers = all(_count(value[name]) and value[name] <= most for name, most in _MOST_OF_STAND_INS.items())
    return numbers and all(isinstance(value[name], str) for name in _TEXTS_OF_STAND_INS)


def _are_merging(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_merging_layer, value))


def _is_merging_layer(value: Any) -> bool:
    fits = isinstance(value, Mapping) and set(value) == {"layer", "path", "keys", "width"}
    if not fits or not all(isinstance(value[name], str) for name in ("layer", "path")):
        return False
    by_output = value["keys"] is None and value["width"] is None
    return by_output or (isinstance(value["keys"], str) and _count(value["width"]) and value["width"] > 0)


def _is_digest(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and {"structure"} <= set(value) <= {"structure", "tensors"}
        and all(isinstance(each, str) and re.fullmatch("[0-9a-f]{64}", each) for each in value.values())
    )


_TEXTS_OF_STAND_INS = ("argument", "cache", "reader")
_MOST_OF_STAND_INS = {"position": 64, "returns": 64, "width": MOST_UNITS, "cache_layer": MOST_UNITS}

# Name of an argument -> what it must be, in words and as a test.
_FORMS = {
    "transformers": ("a version, such as '5.23.0'", lambda value: isinstance(value, str)),
    "base": ("the path of a module, or ''", lambda value: isinstance(value, str)),
    "shapes": ("names of tensors with lists of whole numbers of at least 0", _are_shapes),
    "counters": ("paths of attributes with whole numbers of at least 0", _are_counters),
    "selectors": ("paths of modules with names of arguments with heads, such as '0-4,7 of 12'", _are_selectors),
    "stand_ins": (
        f"paths of modules with {', '.join([*_TEXTS_OF_STAND_INS, *_MOST_OF_STAND_INS])} of sizes that modules have",
        _are_stand_ins,
    ),
    "removed": ("paths of modules with the name of a module inside, or ''", _are_removed),
    "without": ("a list of paths of modules", lambda value: _texts(value, list)),
    "merging": ('a list of {"layer": ..., "path": ..., "keys": ..., "width": ...}', _are_merging),
    "digest": ('{"structure": ..., "tensors": ...}, each a SHA-256 in hexadecimal', _is_digest),
}
