"""A forward pass of any model: give it what its `forward` takes, and read whatever it returns, by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..keeping.interruption import raise_interruption
from ..models.identity import config_of, is_of_transformers, main_input_of
from .batch import Batch
from .memory import is_out_of_memory

# What transformers' own classes are told beside their inputs.
_OPTIONS = {"use_cache": False, "return_dict": True}
_EMBEDDING, _POOLED = "last_hidden_state", "pooler_output"
_KNOWN = (_EMBEDDING, _POOLED, "embeds", "logits")  # endings of names that say what an output is
logger = logging.get_logger(__name__)


def run_model(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Run a model; return its outputs by name.

    Args:
        model: of any class; its hooks run, too.
        batch: its inputs; those that its `forward` does not take are left out, and those that it cannot do without
            (token types, positions, the attention mask) are made up as transformers does.

    Returns:
        Name -> output, without those that are `None`. A mapping, a dataclass, a named tuple or an object with `logits`
        has names of its own. Otherwise the floating-point tensors of a tuple, or the one tensor, are called by what
        their shape says (`_name_of`), each name once; numbers (a loss) are passed over.
    """
    return named_outputs(model, call_model(model, batch))


def named_outputs(model: nn.Module, outputs: Any) -> dict[str, Any]:
    """What a model has returned, by name; see `run_model`."""
    named = _own_names(outputs)
    if named is None:
        named = {}
        for each in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
            if isinstance(each, Tensor) and each.is_floating_point() and each.dim():
                named.setdefault(_name_of(each, model), each)
    return {name: value for name, value in named.items() if value is not None}


def call_model(model: nn.Module, batch: Batch) -> Any:
    """Run a model as `run_model` does; return what it returns."""
    signature = inspect.signature(model.forward).parameters
    inputs = inputs_taken(model, batch)
    places = [name for name, parameter in signature.items() if parameter.kind is parameter.POSITIONAL_ONLY]
    given = []
    for name in places:  # positional ones, as far as there is something to give
        if name not in inputs:
            break
        given.append(inputs[name])
    named = {name: value for name, value in inputs.items() if name not in places}
    return model(*given, **named, **call_options(model))


def inputs_taken(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The inputs that a model is run with: those of a batch that its `forward` takes, and what `run_model` makes up."""
    inputs = {name: value for name, value in batch.items() if takes(model, name)}
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if name not in inputs and parameter.default is parameter.empty and name in _MADE_UP and "input_ids" in batch:
            inputs[name] = _MADE_UP[name](batch["input_ids"])
    return inputs


def call_options(model: nn.Module) -> dict[str, bool]:
    """What a model is told beside its inputs: to keep no cache, and to name what it returns."""
    signature = inspect.signature(model.forward).parameters
    # What a class that is not of transformers does with its `**kwargs` is unknown.
    ours = str(inspect.unwrap(type(model).forward).__module__).startswith("transformers.")
    return {name: value for name, value in _OPTIONS.items() if name in signature or (ours and _hands_on(model, name))}


def first_of(output: Any) -> Any:
    """What a module returns; of several things, the first, however deep it lies (a backbone's first feature map)."""
    if isinstance(output, Mapping) and output:
        return first_of(next(iter(output.values())))
    return first_of(output[0]) if isinstance(output, (tuple, list)) and output else output


@torch.no_grad()
def check_runs(model: nn.Module, batch: Batch) -> None:
    """Raise if a model does not run on a batch.

    Args:
        model: the model, frozen.
        batch: its inputs.

    Raises:
        ValueError: says what happened, and what the model's forward takes besides.
    """
    try:
        call_model(model, batch)
    except Exception as error:  # whatever a forward may raise
        raise_interruption(error)
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{type(model).__name__} {why_not_run(model, batch, error)}.") from error


def why_not_run(model: nn.Module, batch: Batch, error: Exception) -> str:
    """What to say of a model that does not run on a batch: the error, and the inputs that it takes besides."""
    signature = inspect.signature(model.forward).parameters
    others = [name for name in signature if name not in batch and signature[name].kind not in _VARIADIC]
    needed = [name for name in others if signature[name].default is inspect.Parameter.empty and name not in _MADE_UP]
    lacking = f", and cannot do without {' and '.join(needed)}" if needed else ""
    return (
        f"does not run on {' and '.join(batch)} ({type(error).__name__}: {error}). Its forward takes also "
        f"{', '.join(others) or 'nothing'}{lacking}: what it needs of that, data must hold, or a subclass make up"
    )


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_MADE_UP = {
    "attention_mask": torch.ones_like,
    "token_type_ids": torch.zeros_like,
    "position_ids": lambda ids: torch.arange(ids.shape[1], device=ids.device).expand_as(ids),
}


def takes(model: nn.Module, name: str) -> bool:
    """Whether the model's `forward` takes an input of this name; with `**kwargs`, what its base model takes, too, and a
    plain module whatever it is given."""
    if name in inspect.signature(model.forward).parameters:
        return True
    if not is_of_transformers(model):
        return _any_name(model)
    base = getattr(model, "base_model", model)
    if base is not model and _any_name(model):
        return takes(base, name)
    return _any_name(model) and name in (main_input_of(model), "attention_mask")


def _any_name(model: nn.Module) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _hands_on(model: nn.Module, option: str) -> bool:
    """Whether a class of transformers does what is meant with an option among its `**kwargs`."""
    # Some hand it on, and some give it a value of their own beside the one among their `**kwargs`.
    return _any_name(model) and (option != "use_cache" or takes(getattr(model, "base_model", model), option))


def check_forward(model: nn.Module, names: Iterable[str]) -> None:
    """Raise if the model cannot be run on samples that have these inputs.

    Args:
        model: the model.
        names: inputs that its architecture reads, e.g. `"input_ids"`.

    Raises:
        ValueError: its `forward` takes one of them under another name or not at all, or needs something else; or it
            reads several sequences per sample (multiple choice).
    """
    kind, signature = type(model).__name__, inspect.signature(model.forward).parameters
    check_sequences(model)
    names = list(names)
    if missing := [name for name in names if not takes(model, name)]:
        raise ValueError(
            f"{kind}.forward takes {', '.join(signature) or 'nothing'}, but not {' and '.join(missing)}, which a "
            f"{model.config.model_type!r} model reads: name its arguments as transformers does."
        )
    needed = [
        name
        for name, parameter in signature.items()
        if parameter.default is parameter.empty and parameter.kind not in _VARIADIC
    ]
    if extra := [name for name in needed if name not in (*names, *_MADE_UP)]:
        raise ValueError(
            f"{kind}.forward cannot be called without {', '.join(extra)}, of which we know nothing: give "
            f"{'it a default' if len(extra) == 1 else 'them defaults'}, e.g. None."
        )


def check_sequences(model: nn.Module) -> None:
    """Raise if a model reads several sequences per sample.

    Raises:
        ValueError: says what to prune instead.
    """
    if any(each.__name__.endswith("ForMultipleChoice") for each in type(model).__mro__):
        raise ValueError(
            f"{type(model).__name__} reads several sequences per sample, (batch, choices, tokens), which is not "
            "supported: prune its encoder (task='feature-extraction', or model.base_model), or the same checkpoint as "
            "a ...ForSequenceClassification, whose samples are (batch, tokens)."
        )


def logits_of(outputs: Mapping[str, Any]) -> Tensor | None:
    """The logits among a model's named outputs, `None` if there are none, or several that no name tells apart."""
    for name in ("logits", "prediction_logits"):
        if isinstance(outputs.get(name), Tensor):
            return outputs[name]
    found = {name: value for name, value in outputs.items() if isinstance(value, Tensor) and value.is_floating_point()}
    heads = [name for name, value in found.items() if name.endswith("logits") and value.dim()]
    if not heads and not any(name.endswith(_KNOWN) for name in found):
        heads = [name for name, value in found.items() if value.dim() and name != "loss"]
    if len(heads) > 1 or isinstance(outputs.get("logits"), (Mapping, tuple, list)):
        logger.warning_once(
            f"the model has several outputs ({', '.join(heads) or 'logits of several heads'}), of which none is called "
            "'logits': it is scored by its trajectory, as a model without a head. Let forward return the one that "
            "matters as 'logits' to have it count."
        )
        return None
    return found[heads[0]] if heads else None


def _own_names(outputs: Any) -> dict[str, Any] | None:
    """The outputs by the names that they come with, `None` if they have none."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if dataclasses.is_dataclass(outputs):
        return {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    if hasattr(outputs, "_asdict"):
        return outputs._asdict()
    return dict(vars(outputs)) if hasattr(outputs, "logits") else None


def _name_of(tensor: Tensor, model: nn.Module) -> str:
    """A name for a tensor that has none. One as wide as the hidden states (and not as a head) is taken for them, by
    token or pooled; any other for logits, of shape (batch, classes), (batch, tokens, classes) or (batch,)."""
    config = config_of(model)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = (getattr(config, "num_labels", None), getattr(config, "vocab_size", None))
    width = tensor.shape[-1]
    if tensor.dim() > 1 and width == getattr(config, "hidden_size", None) and width not in heads:
        return _EMBEDDING if tensor.dim() > 2 else _POOLED
    return "logits"
