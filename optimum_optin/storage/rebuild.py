"""Rebuilding: a skeleton of the dense model becomes that of a pruned one, by what the entry in its config says.

Nothing is known of the model's architecture, and nothing is run. What the entry names must be there, and every number
is at most what the skeleton has: a damaged file, or a version of transformers with other names, ends in an error.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version

from ..editing.stand_ins import StandIn, empty
from ..editing.surgery import HeadSelector, follow_shapes, set_attribute
from ..merging.hooks import MergingLayer, attach_mergers, check_takes_bias
from ..merging.schedule import TokenSchedule
from .entry import ATTRIBUTE, STRUCTURE_FILE, OptinStructureConfig
from .structure import selected_from_json


def rebuild(model: nn.Module, data: Mapping[str, Any]) -> None:
    """Make a dense model, or its skeleton on the meta device, what an entry says, and note it in its config, in place.

    Args:
        model: of the class that was saved, or of one that holds the same base model.
        data: the JSON form of an entry of format 2.

    Raises:
        ValueError: the entry is damaged, or does not fit the model; names what does not.
    """
    entry = OptinStructureConfig(**data)
    vars(entry).pop("digest", None)  # a model in memory may change
    names = Names(model, entry)
    entry.shapes = _renamed(entry.shapes, lambda name: names.found(name, holds_tensor))
    entry.counters = _renamed(entry.counters, lambda path: names.found(path, holds_count))
    for part in ("selectors", "stand_ins"):
        setattr(entry, part, _renamed(getattr(entry, part), lambda path: names.found(path, holds_module)))
    entry.without = [path for name in entry.without if (path := names.found(name, holds_module))]
    entry.merging = [
        {**each, **{part: names.found(each[part], holds_module) for part in ("path", "keys") if each[part]}}
        for each in entry.merging
    ]
    _check_sizes(model, entry)
    _set_shapes(model, entry.shapes)
    for path, value in entry.counters.items():
        if value > value_at(model, path):
            raise ValueError(
                f"{place_of(model)} sets {path} to {value}, but it is {value_at(model, path)} in a dense model."
            )
        set_attribute(model, path, value)
    for path, selected in entry.selectors.items():
        for argument, kept in selected.items():
            _select(model, path, argument, *selected_from_json(kept))
    for path, noted in entry.stand_ins.items():
        _stand_in(model, path, noted)
    for path in entry.without:
        _module(model, path)
        set_attribute(model, path, None)
    if entry.merging and entry.tokens is None:
        raise ValueError(f"{place_of(model)} names layers that merge tokens, and no schedule: it is damaged.")
    if entry.tokens is not None:
        _merge(model, [MergingLayer(**each) for each in entry.merging], TokenSchedule.from_json(entry.tokens))
    entry.base = base_path(model)
    note(model, entry)


def note(model: nn.Module, entry: OptinStructureConfig) -> None:
    """Note in a model's config how it was pruned, in place; of a plain module, in an attribute."""
    if not isinstance(model, PreTrainedModel):
        setattr(model, ATTRIBUTE, entry)
        return
    model.config.quantization_config = entry
    if hasattr(type(model), "_get_static_cache_init_shape"):
        model._get_static_cache_init_shape = _sized_by_the_first_keys
    for part in model.modules():  # a tower, whose own config says nothing of it
        if isinstance(part, PreTrainedModel) and part.config is not model.config:
            part.optin_whole = type(model).__name__


def _sized_by_the_first_keys() -> None:
    """How many heads a static cache is to have room for: nobody knows, so that each layer's first keys tell.

    transformers would take the number in the config for all layers (`prefill_chunk_size` with a static cache).
    """


def base_path(model: nn.Module) -> str:
    """Path of a model's base model, without its head; `""` if it has none."""
    has_head = isinstance(model, PreTrainedModel) and model.base_model is not model
    return model.base_model_prefix if has_head else ""


def place_of(model: nn.Module) -> str:
    """The file that says how a model was pruned."""
    return "config.json" if isinstance(model, PreTrainedModel) else STRUCTURE_FILE


class Names:
    """Names and paths of an entry as they are in a model, which may have a head that the one that was saved did not
    have, or the other way round.

    Args:
        model: a model.
        entry: the entry.
    """

    def __init__(self, model: nn.Module, entry: OptinStructureConfig):
        self._model, self._version = model, entry.transformers
        self._saved, self._here = (f"{path}." if path else "" for path in (entry.base, base_path(model)))
        # Of another class than the one that was saved, parts may be missing: a head, or a decoder.
        of_transformers = isinstance(model, PreTrainedModel)
        self._other = of_transformers and type(model).__name__ not in (model.config.architectures or ())
        ignored = model._keys_to_ignore_on_load_unexpected if of_transformers else None
        self._ignored = [re.compile(each) for each in ignored or ()]

    def here(self, name: str, holds: Callable[[nn.Module, str], bool]) -> str | None:
        """The name that something has in the model; `None` if it is not there."""
        inside = name.removeprefix(self._saved)
        found = (name, inside, f"{self._here}{inside}")
        return next((each for each in found if holds(self._model, each)), None)

    def found(self, name: str, holds: Callable[[nn.Module, str], bool]) -> str | None:
        """The name that something has in the model; `None` if it is part of what its class leaves out.

        Raises:
            ValueError: it is not there, and should be.
        """
        here = self.here(name, holds)
        of_a_head = not name.startswith(self._saved) or any(each.search(name) for each in self._ignored)
        if here is None and not (self._other and of_a_head):
            place, kind = place_of(self._model), type(self._model).__name__
            if not isinstance(self._model, PreTrainedModel):
                raise ValueError(
                    f"{place} names {name}, which this {kind} does not have: it is not the dense module that was "
                    "pruned (other sizes, or another version of its code); else the file is damaged."
                )
            raise ValueError(
                f"{place} names {name}, which a {kind} does not have. The model was saved "
                f"with transformers {self._version}, and this is {transformers_version}, where modules may have other "
                "names: load it with that version, or by the class that it was saved from; else the file is damaged."
            )
        return here


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, found among modules alone; `None` if there is none."""
    module: nn.Module | None = model
    for name in path.split(".") if path else ():
        module = module._modules.get(name) if module is not None else None
    return module


def tensor_at(model: nn.Module, name: str) -> Tensor | None:
    """The parameter or buffer of a name, also one without elements (`EmptyLinear`); `None` if there is none."""
    path, _, last = name.rpartition(".")
    module = module_at(model, path)
    if module is None:
        return None
    if last in vars(module).get("empty", ()):
        return vars(module)[last]
    found = module._parameters.get(last)
    return module._buffers.get(last) if found is None else found


def value_at(model: nn.Module, path: str) -> int | None:
    """The whole number that a module, or the config of one, has under a path; `None` if there is none."""
    owner: Any = model
    *places, last = path.split(".")
    for name in places:
        inner = owner._modules.get(name) if isinstance(owner, nn.Module) else None
        if inner is None:
            inner = vars(owner).get(name)
            if not isinstance(inner, PreTrainedConfig):
                return None
        owner = inner
    value = None if last.startswith("_") else vars(owner).get(last)
    return value if type(value) is int else None


def is_saved(model: nn.Module, name: str) -> bool:
    """Whether a parameter or buffer is written to disk."""
    path, _, last = name.rpartition(".")
    module = module_at(model, path)
    return module is None or last not in module._non_persistent_buffers_set


def holds_tensor(model: nn.Module, name: str) -> bool:
    """Whether a model has a parameter or buffer of a name."""
    return tensor_at(model, name) is not None


def holds_count(model: nn.Module, path: str) -> bool:
    """Whether a module of a model, or the config of one, has a whole number under a path."""
    return value_at(model, path) is not None


def holds_module(model: nn.Module, path: str) -> bool:
    """Whether a model has a module at a path."""
    return bool(path) and module_at(model, path) is not None


def _renamed(entries: Mapping[str, Any], here: Callable[[str], str | None]) -> dict[str, Any]:
    names = {name: here(name) for name in entries}
    return {names[name]: value for name, value in entries.items() if names[name] is not None}


def _check_sizes(model: nn.Module, entry: OptinStructureConfig) -> None:
    """Raise if an entry counts more heads, channels or layers than any weight has rows or columns."""
    most = max((size for each in model.parameters() for size in each.shape), default=0)
    counts = [count for each in entry.stand_ins.values() for count in (each["width"], each["cache_layer"])]
    for kept, heads in (selected_from_json(text) for each in entry.selectors.values() for text in each.values()):
        counts.append(heads or kept.last + 1)
    if max(counts, default=0) > most:
        raise ValueError(
            f"{place_of(model)} counts {max(counts)} heads, channels or layers, and no weight of the dense model has "
            f"more than {most} rows or columns: the file is damaged."
        )


def _set_shapes(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give tensors other shapes, in place; their values are lost."""
    for name, shape in shapes.items():
        dense = tuple(tensor_at(model, name).shape)
        if len(shape) != len(dense) or any(size > most for size, most in zip(shape, dense, strict=True)):
            raise ValueError(
                f"{place_of(model)} gives {name} the shape {tuple(shape)}, but a dense model has {dense} there, of "
                f"which a pruned one keeps a part: the file is damaged, or of a model with another configuration."
            )
        if not is_saved(model, name):
            raise ValueError(f"{place_of(model)} gives {name} another shape, but it is not among the weights on disk.")
    bare: dict[nn.Module, bool] = {}
    for name, shape in shapes.items():
        path, _, last = name.rpartition(".")
        module, tensor = module_at(model, path), tensor_at(model, name)
        cut = tensor.new_empty(tuple(shape))
        setattr(module, last, nn.Parameter(cut, tensor.requires_grad) if last in module._parameters else cut)
        bare[module] = bare.get(module, False) or cut.numel() == 0
    for module, without_elements in bare.items():
        follow_shapes(module)
        if without_elements:
            empty(module)


def _stand_in(model: nn.Module, path: str, noted: Mapping[str, Any]) -> None:
    """Put what is left of a module that does not run any more in its place."""
    module, reader = _module(model, path), noted["reader"]
    if hasattr(module, "hold"):  # a linear without outputs
        module.in_graphs = True
        return
    linear = module_at(module, reader) if reader else None
    if reader and not hasattr(linear, "hold"):  # an `EmptyLinear`
        raise ValueError(
            f"{place_of(model)} keeps the bias of {reader} of {path}, which is not there or reads something: "
            f"{place_of(model)} is damaged."
        )
    model.set_submodule(path, StandIn(**noted, linear=linear).train(module.training))


def _module(model: nn.Module, path: str) -> nn.Module:
    module = module_at(model, path)
    if module is None:
        raise ValueError(f"{place_of(model)} removes what holds {path}, and names it: {place_of(model)} is damaged.")
    return module


def _select(model: nn.Module, path: str, argument: str, kept: Sequence[int], heads: int | None) -> None:
    """Let a module pick its heads from a bias of all; see `HeadSelector`."""
    module = _module(model, path)
    arguments = list(inspect.signature(module.forward).parameters)
    if argument not in arguments:
        raise ValueError(
            f"{place_of(model)} names the argument {argument!r} of {path}, which takes {', '.join(arguments)}."
        )
    selector = HeadSelector(argument, arguments.index(argument), list(kept), heads)
    module.register_forward_pre_hook(selector, with_kwargs=True)


def _merge(model: nn.Module, layers: Sequence[MergingLayer], schedule: TokenSchedule) -> None:
    """Let layers merge tokens."""
    if missing := {layer for layer, count in schedule.merges.items() if count} - {each.layer for each in layers}:
        raise ValueError(f"token schedule: config.json does not say where {', '.join(sorted(missing))} is.")
    if layers:
        _check_order(model, layers, schedule)
    for each in layers:
        check_takes_bias(model, each.path)
        features = getattr(module_at(model, each.keys), "out_features", 0) if each.keys else 0
        if each.width and features % each.width:
            raise ValueError(f"token schedule: {each.keys} writes {features} features, no multiple of {each.width}.")
    attach_mergers(model, layers, schedule)


def _check_order(model: nn.Module, layers: Sequence[MergingLayer], schedule: TokenSchedule) -> None:
    """Raise if layers are not those from the first that merges to the last of the stack, which restores all tokens."""
    for each in layers:
        if each.path is None or (each.width and each.keys is None):
            raise ValueError(f"token schedule: {each.layer} is not in this model.")
        if each.keys and not each.keys.startswith(f"{each.path}."):
            raise ValueError(f"token schedule: {each.keys}, which makes keys, is no part of {each.path}.")
    stack, _, first = layers[0].path.rpartition(".")
    inside = list(getattr(module_at(model, stack), "_modules", {}))
    expected = [f"{stack}.{name}" for name in inside[inside.index(first) :]] if first in inside else []
    if [each.path for each in layers] != expected or len({each.layer for each in layers}) < len(layers):
        raise ValueError(
            f"token schedule: config.json has {', '.join(each.path for each in layers)} in the place of "
            "the layers from the first that merges to the last of them: it is damaged."
        )
    if not schedule.merges.get(layers[0].layer) or schedule.merges.get(layers[-1].layer):
        raise ValueError(
            f"token schedule: {layers[0].layer} must merge, as the first, and {layers[-1].layer}, the last, must not."
        )
