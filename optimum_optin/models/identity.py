"""Identity: what is asked of any model, of transformers or not: its type, config, device, precision and main input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .examples import example_of


def is_of_transformers(model: Any) -> bool:
    """Whether a model is one of transformers, which has a config and saves itself with it."""
    return isinstance(model, PreTrainedModel)


def config_of(model: nn.Module) -> Any:
    """The config that transformers reads a model by; `None` for a plain module, whatever that calls its config."""
    return getattr(model, "config", None) if example_of(model) is None or is_of_transformers(model) else None


def type_of(model: nn.Module) -> str:
    """The model type in the config, such as `"bert"`; of a plain module, the name of its class."""
    config = config_of(model)
    return type(model).__name__ if config is None else getattr(config, "model_type", "")


def in_words(model: nn.Module) -> str:
    """What to call a model in a message, after "this": `"'bert' model"`, or the class of a plain module."""
    return type_of(model) if config_of(model) is None else f"{type_of(model)!r} model"


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter, where its inputs go."""
    return next((each.device for each in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def dtype_of(model: nn.Module) -> torch.dtype:
    """The precision of a model's first parameter of floating-point numbers."""
    numbers = (each.dtype for each in (*model.parameters(), *model.buffers()) if each.is_floating_point())
    return next(numbers, torch.get_default_dtype())


def main_input_of(model: nn.Module) -> str | None:
    """The input that a model's samples are counted by: its class tells, or the first of the example of a module."""
    example = example_of(model)
    return getattr(model, "main_input_name", None) if example is None else next(iter(example))


def attention_of(model: nn.Module) -> str | None:
    """The implementation of attention that the config names; `None` where it names none."""
    return getattr(config_of(model), "_attn_implementation", None)


def name_of(model: nn.Module) -> str:
    """The Hub id or the folder that a model was loaded by; empty if it was made in memory."""
    return str(getattr(config_of(model), "_name_or_path", None) or "")
