"""Integrity: whether a model is what its class makes of its config, so that saving it loses nothing.

Saving keeps a config, and weights by name. Whatever else a model has (adapters, computed or quantized weights, other
modules) is lost or changed without a word when it is loaded again.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..digests.listing import write_listing
from ..files.model_files import weights_in
from ..files.tensor_headers import read_headers
from ..merging.schedule import TokenSchedule
from .entry import entry_of
from .rebuild import rebuild
from .record import convert_model
from .structure import structure_from_json

logger = logging.get_logger(__name__)

_PLAIN = (Tensor, nn.Parameter)
_MERGE = (
    "merge the adapters first: merge_and_unload() of a PeftModel (of one that was added by add_adapter or loaded with "
    "its base: PeftModel.from_pretrained(base, adapter).merge_and_unload()), or take them off"
)
_DEQUANTIZE = "prune the unquantized model, then quantize the result"
# Beginning of the name of a class's module -> what the class is, what to do. By name, so that none is imported.
_FOREIGN = (
    ("peft.", ("of an adapter", _MERGE)),
    ("adapters.", ("of an adapter", _MERGE)),
    ("loralib.", ("of an adapter", _MERGE)),
    ("bitsandbytes.", ("quantized", _DEQUANTIZE)),
    ("optimum.quanto.", ("quantized", _DEQUANTIZE)),
    ("torchao.", ("quantized", _DEQUANTIZE)),
    ("torch.ao.", ("quantized", _DEQUANTIZE)),
    ("hqq.", ("quantized", _DEQUANTIZE)),
    ("auto_gptq.", ("quantized", _DEQUANTIZE)),
    ("gptqmodel.", ("quantized", _DEQUANTIZE)),
    ("awq.", ("quantized", _DEQUANTIZE)),
    ("transformer_engine.", ("prepared for fp8", "unwrap it (Accelerator.unwrap_model(keep_fp32_wrapper=False))")),
    ("torch._dynamo.", ("compiled", "prune before torch.compile: put its ._orig_mod in its place")),
    ("torch.nn.parallel.", ("a wrapper", "put its .module in its place")),
    (
        "torch.distributed.",
        ("a part of a model in several processes", "prune the whole model, before it is shared out"),
    ),
)


def check_own(model: PreTrainedModel) -> None:
    """Raise if a model has something, wherever it sits, that would not be saved with it, or not as it is.

    Raises:
        ValueError: names the module or weight, and what to do.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        path = next((path for path, kind in _foreign(model) if kind[0] == "of an adapter"), "of one kind or other")
        raise ValueError(f"the model has adapters ({path}), which is all that would be saved: {_MERGE}.")
    for path, (what, remedy) in _foreign(model):
        module = model.get_submodule(path)
        kind = f"{type(module).__module__}.{type(module).__name__}"
        raise ValueError(f"{path} is a {kind}, {what}: {remedy}.")
    made = _made_by_class(model)
    for path, module in model.named_modules():
        computed = _computed(module)
        start = f"{path}.{computed}".removeprefix(".")
        if computed and (made is None or not any(name.startswith(start) for name in made.shapes)):
            raise ValueError(
                f"the weight of {path} is computed from others ({computed}): remove parametrizations, norms and masks "
                "first (torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.prune.remove, "
                "torch.nn.utils.remove_weight_norm, torch.nn.utils.remove_spectral_norm)."
            )
    for name, parameter in model.named_parameters():
        if type(parameter) not in _PLAIN:
            raise ValueError(
                f"{name} is a {type(parameter).__module__}.{type(parameter).__name__}, not a plain tensor: "
                f"{_DEQUANTIZE}; of one that is shared out to several processes, prune the whole."
            )
        if parameter.element_size() < 2:
            raise ValueError(f"{name} is kept in {parameter.dtype}: cast it (model.float()), or {_DEQUANTIZE}.")
    for one, other in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        left, right = (_get(model, name) for name in (one, other))
        if left is not None and right is not None and left is not right and not torch.equal(left, right):
            raise ValueError(
                f"{one} and {other} differ, but are one weight by the config and would be when loaded: call "
                "model.tie_weights(), or set config.tie_word_embeddings=False."
            )


def difference(model: nn.Module) -> str | None:
    """How a model differs from what its class makes of its config: in names and shapes of weights, in which of them are
    shared, or in activations. `None` if it does not, or if the class takes more than a config, so that nobody can tell;
    of a plain module, only `load_pruned` can.
    """
    return _difference(model) if isinstance(model, PreTrainedModel) else None


def _difference(model: PreTrainedModel) -> str | None:
    tied, seen = getattr(model, "all_tied_weights_keys", None) or {}, {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = seen.setdefault(parameter, name)
        if other != name and name not in tied and other not in tied:
            return f"{other} and {name} are one weight, which the class does not say (_tied_weights_keys)"
    made = _made_by_class(model)
    if made is None:
        return None
    expected = made.shapes
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    kind = type(model).__name__
    for name in [*found, *expected]:
        if name not in expected:
            return f"{name} is no weight of a {kind} with this config"
        if name not in found:
            return f"{name}, a weight of every {kind} with this config, is not there"
        if found[name] != expected[name]:
            return f"{name} has the shape {found[name]}, by the config {expected[name]}"
    return _other_function(model, made.skeleton)


def is_rebuilt(model: PreTrainedModel) -> bool:
    """Whether it is known that a model's class makes all of its weights of its config."""
    return _made_by_class(model) is not None and difference(model) is None


def check_rebuilt(model: nn.Module) -> None:
    """Raise if the model's class makes something else of its config, so that it could not be loaded.

    Raises:
        ValueError: names the first weight that differs.
    """
    if found := difference(model):
        raise ValueError(
            f"{found}: saved, it could not be loaded as it is. Bring the config in line, or make a subclass that "
            "builds these modules itself."
        )


def save_model(model: PreTrainedModel, folder: str | os.PathLike) -> None:
    """Save a model with a listing of its tensors and their hashes, and make sure that it loads as the same model.

    Raises:
        ValueError: see `check_rebuilt` and `check_saved`.
    """
    check_rebuilt(model)
    model.save_pretrained(folder)
    write_listing(read_headers(weights_in(Path(folder))), Path(folder), hashed=True)
    check_saved(model, folder)


def check_saved(model: PreTrainedModel, folder: str | os.PathLike) -> None:
    """Raise if what was saved is not the model, found by loading it.

    Args:
        model: the model.
        folder: where it was saved.

    Raises:
        ValueError: names the first weight that differs.
    """
    if _made_by_class(model) is None:
        logger.warning(
            f"{type(model).__name__} takes more than a config, so we did not check that what was saved loads as it is."
        )
        return
    found = reloaded(model, folder).state_dict()
    for name, tensor in model.state_dict().items():
        same = name in found and found[name].shape == tensor.shape
        # A model in several types is loaded in one.
        if not same or not torch.equal(found[name].cpu(), tensor.detach().cpu().to(found[name].dtype)):
            raise ValueError(
                f"what is saved is not the model: {name} is another when loaded. It stays in memory "
                "(pruner.pruned_model); check what was done to that weight."
            )


def reloaded(model: PreTrainedModel, folder: str | os.PathLike) -> PreTrainedModel:
    """The model that was saved in a folder, made as this one was (without a pooler, say), in its type."""
    made = _made_by_class(model)
    return type(model).from_pretrained(folder, dtype=model.dtype, **(made.options if made else {}))


def _foreign(model: nn.Module) -> Iterator[tuple[str, tuple[str, str]]]:
    """Modules of other packages that are not saved as they are: pairs of a path and (what it is, what to do)."""
    for path, module in model.named_modules():
        for kind in type(module).__mro__:
            found = next((entry for prefix, entry in _FOREIGN if kind.__module__.startswith(prefix)), None)
            if found and path:
                yield path, found
                break


def _computed(module: nn.Module) -> str | None:
    """Name of the parameter that a module computes one of its weights from; `None` if it computes none."""
    if parametrized := getattr(module, "parametrizations", None):
        return f"parametrizations.{next(iter(parametrized))}.original"
    for hook in module._forward_pre_hooks.values():
        if type(hook).__module__.startswith("torch.nn.utils."):
            name = getattr(hook, "name", None) or getattr(hook, "_tensor_name", "weight")
            stored = [each for each, _ in module.named_parameters(recurse=False) if each.startswith(f"{name}_")]
            return stored[0] if stored else name
    return None


def _get(model: nn.Module, name: str) -> Tensor | None:
    path, _, attribute = name.rpartition(".")
    try:
        return getattr(model.get_submodule(path), attribute)
    except AttributeError:
        return None


class _Made(NamedTuple):
    """What a class makes of a config: a skeleton on the meta device, and the switches that were set for it."""

    options: dict[str, bool]
    skeleton: PreTrainedModel

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of each weight -> its shape."""
        return {name: tuple(tensor.shape) for name, tensor in self.skeleton.state_dict().items()}


def _made_by_class(model: PreTrainedModel) -> _Made | None:
    """What the model's class makes of its config; `None` if that cannot be told.

    Encoders without a pooler are made by a switch of their class (`add_pooling_layer=False`), which no config notes: of
    all settings of such switches, the one counts that gives the weights that the model has.
    """
    parameters = inspect.signature(type(model).__init__).parameters.values()
    switches = {each.name: each.default for each in parameters if isinstance(each.default, bool)}
    names = set(model.state_dict())
    first = None
    for flipped in product((False, True), repeat=len(switches)):
        options = {name: not old for (name, old), flip in zip(switches.items(), flipped, strict=True) if flip}
        skeleton = skeleton_of(model, options)
        made = skeleton and _Made(options, skeleton)
        if made and set(made.shapes) == names:
            return made
        if not options:
            first = made
    return first


def switches_of(model: PreTrainedModel) -> dict[str, bool] | None:
    """The switches of a model's class that were set for it (without a pooler, say); `None` if that cannot be told."""
    made = _made_by_class(model)
    return None if made is None else made.options


def skeleton_of(
    model: PreTrainedModel, options: dict[str, bool], config: PreTrainedConfig | None = None
) -> PreTrainedModel | None:
    """What a model's class makes of a config, on the meta device; `None` if it makes nothing.

    Args:
        model: the model.
        options: see `switches_of`.
        config: the config; `None` takes the model's own.
    """
    config = copy.deepcopy(model.config if config is None else config)
    entry = entry_of(model)
    vars(config).pop("quantization_config", None)
    try:
        with torch.device("meta"):
            skeleton = type(model)(config, **options)
            if entry and entry.format_version == 1:
                schedule = entry.tokens and TokenSchedule.from_json(entry.tokens)
                convert_model(skeleton, structure_from_json(entry.structure), schedule)
            elif entry:
                rebuild(skeleton, entry.to_dict())
    except Exception as error:  # a class of the user's own may want more than a config, or raise anything
        logger.debug(f"{type(model).__name__} cannot be made of its config: {error}")
        return None
    return skeleton


def _other_function(model: PreTrainedModel, skeleton: PreTrainedModel) -> str | None:
    """The first module without weights, such as an activation, that computes something else than the class's own."""
    own = dict(skeleton.named_modules())
    for path, module in model.named_modules():
        if path in own and not module.state_dict() and not list(module.children()):
            found, expected = _values(module), _values(own[path])
            if found is not None and expected is not None and not torch.allclose(found, expected, atol=1e-3):
                return f"{path} is a {type(module).__name__}, which computes something else than the class's own there"
    return None


def _values(module: nn.Module) -> Tensor | None:
    """What a module returns for some numbers, in evaluation mode; `None` if it takes or returns something else."""
    numbers = torch.linspace(-4, 4, 33, device="cpu").expand(2, -1)
    try:
        output = copy.deepcopy(module).eval()(numbers)
    except Exception:  # it may take anything
        return None
    return output if isinstance(output, Tensor) and output.shape == numbers.shape else None
