"""Export to `per_layer_config`: a pruned folder whose own config says what each layer keeps, without an entry of ours.

The configs of transformers hold such sizes; its models, with few exceptions, do not read them yet.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.utils import logging

from ..architectures.group import QUERY_HEADS, Group, Groups
from ..counting.queries import by_query_heads
from ..discovery.find import find_groups, is_declared
from ..files.folders import atomic_folder
from ..files.links import stays_inside
from ..files.model_files import MASKS
from ..report import REPORT_FILE
from ..storage.entry import METHOD, OptinStructureConfig
from ..storage.integrity import skeleton_of
from ..storage.loading import model_class
from ..storage.rebuild import rebuild
from ..storage.sizes import sized, written
from ..storage.structure import Structure, structure_from_json
from .hub import CARD_FILE

logger = logging.get_logger(__name__)

_FIELD = "per_layer_config"
_OURS = ("config.json", CARD_FILE, REPORT_FILE, MASKS, "modeling_optin.py")  # what says how to load the pruned folder

Overrides = dict[int, dict[str, int]]
"""Index of a layer -> attribute of the config -> its value there."""


def write_per_layer_config(folder: str | os.PathLike, save_dir: str | os.PathLike) -> bool:
    """Write a model that was pruned with `layout="free"` as one whose config has the sizes of each layer.

    The weights are copied as they are. The config has no entry of this package; its `per_layer_config` says what
    differs from the dense model. That each layer has the shapes that the model's class makes of its sizes is checked.
    To find the attributes, a dense model is made with random weights, which takes its memory.

    Args:
        folder: the pruned model.
        save_dir: where to write; another folder.

    Returns:
        Whether the installed transformers makes a model of these sizes of that config. If not, a warning says so: the
        folder is for a version that does.

    Raises:
        ImportError: the installed transformers has no `per_layer_config`.
        ValueError: the model is not pruned freely, has an encoder and a decoder, merges tokens, lost all units of a
            sublayer, or has sizes that its config cannot hold; names them.
        OSError: it cannot be written there.
    """
    check_installed()
    folder, save_dir = Path(folder), Path(save_dir)
    if save_dir.resolve() == folder.resolve():
        raise ValueError(f"save_dir={str(save_dir)!r} is the pruned folder itself: give another.")
    config = AutoConfig.from_pretrained(folder)
    entry = _entry_of(config, folder)
    structure = structure_from_json(entry.structure)
    own = _without_entry(config)
    kind = model_class(folder, None)
    dense = kind._from_config(own).eval()
    groups = _groups(dense, structure)
    overrides = _overrides(own, groups, structure)
    exported = _exported(own, overrides)
    with torch.device("meta"):
        cut = kind._from_config(_without_entry(config))
        rebuild(cut, entry.to_dict())
    _check_layers(dense, cut, groups, overrides)
    made = skeleton_of(dense, {}, exported)
    loads = made is not None and _shapes(made) == _shapes(cut)
    with atomic_folder(save_dir) as draft:
        for file in folder.iterdir():
            if file.is_file() and file.name not in _OURS and stays_inside(file, folder):
                shutil.copyfile(file, draft / file.name)
        exported.save_pretrained(draft)
    if not loads:
        logger.warning(
            f"{kind.__name__} of transformers {transformers_version} does not read {_FIELD}: {save_dir} is for a "
            "version that does, and loads with no other."
        )
    return loads


def check_installed() -> None:
    """Raise if the installed transformers knows no sizes of single layers.

    Raises:
        ImportError: says what to install.
    """
    if not hasattr(PreTrainedConfig, _FIELD):
        raise ImportError(
            f"{_FIELD} needs a newer transformers than {transformers_version} (5.23 has it): pip install -U "
            "transformers."
        )


def _entry_of(config: PreTrainedConfig, folder: Path) -> OptinStructureConfig:
    data = getattr(config, "quantization_config", None) or {}
    if data.get("quant_method") != METHOD:
        raise ValueError(
            f"{folder} has no entry that says what was cut: it is dense, or was pruned with layout='uniform', and its "
            "config has the sizes of its layers already."
        )
    entry = OptinStructureConfig(**data)
    if entry.format_version == 1:
        raise ValueError(f"{folder} was saved in format 1: load it, and save it again with this version.")
    if config.is_encoder_decoder:
        raise ValueError(f"{_FIELD} counts the layers of one stack, and {config.model_type!r} has two.")
    if entry.tokens is not None or entry.selectors:
        what = "merges tokens" if entry.tokens is not None else "has layers that pick their heads from a shared bias"
        raise ValueError(f"{folder} {what}, which no config of transformers says: load it with this package.")
    return entry


def _without_entry(config: PreTrainedConfig) -> PreTrainedConfig:
    """The dense model's config."""
    data: dict[str, Any] = config.to_dict()
    for name in ("quantization_config", "auto_map"):
        data.pop(name, None)
    return type(config).from_dict(data)


def _groups(dense: PreTrainedModel, structure: Structure) -> Groups:
    """The dense model's groups, with the attributes of the config that hold their sizes."""
    groups = find_groups(dense)
    if any(key.endswith(f".{QUERY_HEADS}") for key in structure):
        groups = by_query_heads(dense, groups)
    return groups if is_declared(dense) else sized(dense, groups)


def _overrides(config: PreTrainedConfig, groups: Groups, structure: Structure) -> Overrides:
    """What is to be written of each layer; what holds for all is written to the config, in place."""
    known = {group.key: group for group in groups}
    written(config, groups, lambda group: group.units)
    found: Overrides = {}
    for key, entry in structure.items():
        count = len(entry.kept)
        if count == entry.units:
            continue
        group = known.get(key)
        if group is None or group.units != entry.units or not group.config_fields:
            raise ValueError(
                f"{key} kept {count} of {entry.units}, and no attribute of {type(config).__name__} was found that says "
                "how many there are: prune with OptinConfig(exclude=[...]) that leaves such groups whole."
            )
        _check_count(group, count, config)
        layer = found.setdefault(int(group.layer.rpartition(".")[2]), {})
        for name in group.config_fields:
            layer[name] = getattr(config, name) * count // group.units
    return dict(sorted(found.items()))


def _check_count(group: Group, count: int, config: PreTrainedConfig) -> None:
    if not group.layer.rpartition(".")[2].isdigit() or any("." in name for name in group.config_fields):
        raise ValueError(f"{group.key} is in no layer that {_FIELD} of {type(config).__name__} counts.")
    if count == 0:
        raise ValueError(
            f"{group.key} kept none, and transformers does not say yet how its models leave out a sublayer: keep one "
            f"(OptinConfig(floors={{{group.role!r}: 1}}))."
        )
    if count % group.step:
        raise ValueError(
            f"{group.key} kept {count}, and {type(config).__name__} takes multiples of {group.step}: prune with "
            f"OptinConfig(round_to={{{group.role!r}: {group.step}}})."
        )


def _exported(config: PreTrainedConfig, overrides: Overrides) -> PreTrainedConfig:
    """The config with sizes of layers, read as it will be from disk."""
    data = config.to_dict() | {_FIELD: overrides}
    try:
        exported = type(config).from_dict(data)
        exported.validate()
        again = type(config).from_dict(json.loads(exported.to_json_string(use_diff=False)))
    except Exception as error:  # a config's own checks may raise anything
        names = dict.fromkeys(name for layer in overrides.values() for name in layer)
        raise ValueError(
            f"{type(config).__name__} of transformers {transformers_version} does not take {', '.join(names)} for "
            f"single layers ({type(error).__name__}): leave what it refuses whole (OptinConfig(exclude=[...])), or "
            "take layout='uniform'."
        ) from error
    for index, layer in overrides.items():
        for name, value in layer.items():
            if getattr(again.per_layer_config[index], name) != value:
                raise ValueError(f"{type(config).__name__} does not keep {name}={value} of layer {index}.")
    return exported


def _check_layers(dense: PreTrainedModel, cut: nn.Module, groups: Groups, overrides: Overrides) -> None:
    """Raise if a layer is not what the model's class makes of its sizes."""
    found, made = _shapes(cut), {}
    for layer, path in groups.layers.items():
        index = layer.rpartition(".")[2]
        sizes = overrides.get(int(index), {}) if index.isdigit() else {}
        key = tuple(sorted(sizes.items()))
        if key not in made:
            skeleton = skeleton_of(dense, {}, _with(dense.config, sizes))
            made[key] = {} if skeleton is None else _shapes(skeleton)
        expected = {name: shape for name, shape in made[key].items() if name.startswith(f"{path}.")}
        if expected != {name: shape for name, shape in found.items() if name.startswith(f"{path}.")}:
            raise ValueError(f"{path} is not what {type(dense).__name__} makes of {sizes}: it cannot be exported.")


def _with(config: PreTrainedConfig, sizes: Mapping[str, int]) -> PreTrainedConfig:
    return type(config).from_dict(config.to_dict() | sizes)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
