"""What a model is for: its task on the Hub, and the Auto class that loads it."""

from __future__ import annotations

import inspect

import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from .auto_map import ordinary_class


def class_of(model: PreTrainedModel) -> type[PreTrainedModel] | None:
    """The class of `transformers` that a model is of; `None` if its class is the user's own, whatever its name."""
    kind = ordinary_class(type(model))
    return kind if getattr(transformers, kind.__name__, None) is kind else None


def named_by(config: PreTrainedConfig) -> str | None:
    """The name of the class that a config names; `None` if it names none.

    Raises:
        ValueError: what it has there is no name.
    """
    names = config.architectures or [None]
    name = names[0] if isinstance(names, (list, tuple)) else names
    if name is None or (isinstance(name, str) and name.isidentifier() and isinstance(names, (list, tuple))):
        return name
    raise ValueError(f"architectures in config.json must be a list of names of classes, got {names!r:.80}.")


def class_named(name: str) -> type[PreTrainedModel] | None:
    """The class of models of `transformers` by this name; `None` if it is not there, or no class of models.

    One that needs a package which is not installed is returned, as it says so when it is called.
    """
    kind = getattr(transformers, name, None)
    if not isinstance(kind, type) or kind is PreTrainedModel:
        return None
    return kind if issubclass(kind, PreTrainedModel) or "_backends" in vars(kind) else None


def task_of(model: nn.Module) -> str | None:
    """The Hub's name of the model's task, e.g. `"text-classification"`; `None` if its class has none, as
    plain modules."""
    if not isinstance(model, PreTrainedModel):
        return None
    from optimum.exporters.tasks import TasksManager  # slow to import

    try:
        return TasksManager.infer_task_from_model(type(model))
    except ValueError:
        return None


def auto_class_of(model: PreTrainedModel) -> str:
    """Name of the class to load the model with: an Auto class of `transformers`, or its own if none fits."""
    from optimum.exporters.tasks import TasksManager  # slow to import

    task = task_of(model)
    if task is None or class_of(model) is None:  # an Auto class would make another class of it
        return type(model).__name__
    return TasksManager.get_model_class_for_task(task, model_type=model.config.model_type).__name__


def maker_of(model: PreTrainedModel) -> type:
    """The class to load a model with: an Auto class that makes it, `AutoModel` before others, or its own."""
    kind = class_of(model)
    autos = dict(inspect.getmembers(modeling_auto, inspect.isclass)) if kind else {}
    for name in sorted(autos, key=lambda name: (name != "AutoModel", name)):
        mapping = getattr(autos[name], "_model_mapping", None)
        if name.startswith("AutoModel") and mapping is not None and type(model.config) in mapping:
            made = mapping[type(model.config)]
            if made is kind:  # of several, the config decides
                return autos[name]
    return type(model)
