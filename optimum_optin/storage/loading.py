"""Loading from a folder or the Hub: the model's class, the model, its processor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..files.exchange import check_whole
from ..files.json_files import read_object
from ..files.model_files import damaged_weights
from ..inputs.modalities import TEXTS, Modality
from ..running.processes import state
from .auto_map import own_code
from .entry import STRUCTURE_FILE
from .tasks import class_named, named_by

logger = logging.get_logger(__name__)

_ALSO = {"summarization": "text2text-generation", "translation": "text2text-generation"}  # names that people look for

_HUB_OPTIONS = (
    "revision",
    "token",
    "cache_dir",
    "subfolder",
    "local_files_only",
    "force_download",
    "trust_remote_code",
)


def load_model(model: str | os.PathLike, task: str | None, **kwargs) -> PreTrainedModel:
    """A checkpoint in evaluation mode, on the device that Accelerate chooses unless `device_map` is given.

    Args:
        model: Hub id or local folder.
        task: see `OptinPruner.from_pretrained`.
        **kwargs: passed to `from_pretrained`.

    Raises:
        ValueError: see `model_class`, or damaged weights.
    """
    try:
        loaded = model_class(model, task, **kwargs).from_pretrained(model, **kwargs)
    except SafetensorError as error:  # it does not say which file
        file = damaged_weights(Path(model, kwargs.get("subfolder") or ""))
        where = f" ({file.name})" if file else ""
        raise ValueError(f"the weights of {model}{where} are damaged: {error}.") from error
    if "device_map" not in kwargs:
        loaded = loaded.to(state().device)
    return loaded.eval()


def check_loaded(model: nn.Module) -> None:
    """Raise if a weight has no values, though those that were offloaded to files are there while a model is `kept`.

    Raises:
        ValueError: names the first of them, and says what to do.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            continue
        if any("_hf_hook" in vars(module) for module in model.modules()):
            raise ValueError(
                f"weight {name} is offloaded, and the model does not run on the CPU alone: load it with "
                "device_map='cpu', which leaves weights in their files until they are used, or with a device_map that "
                "has room for all of them."
            )
        raise ValueError(f"weight {name} is on the meta device, without values: load the model's weights first.")


def model_class(model: str | os.PathLike, task: str | None, **kwargs) -> type:
    """The class to load a checkpoint with; arguments as for `load_model`.

    Raises:
        ValueError: a damaged config, an unknown task, or an adapter; or, without a task, a checkpoint that brings code
            which is not trusted, or names a class that transformers does not have.
        FileNotFoundError, BlockingIOError: a save to the folder was killed while it moved files, or is running.
    """
    folder = Path(model, kwargs.get("subfolder") or "")
    check_whole(folder)
    _check_config(folder / "config.json")
    if Path(model, STRUCTURE_FILE).is_file():
        raise ValueError(
            f"{model} holds a pruned module of plain PyTorch, which only its own class makes: in Python, "
            f"optimum_optin.load_pruned(factory, {str(model)!r}) loads it, and OptinPruner.from_model(module, "
            "example_inputs) checks, scores, prunes and times modules. Of the commands, info and push work."
        )
    if Path(model, "adapter_config.json").is_file():
        raise ValueError(
            f"{model} holds an adapter: merge it first (PeftModel.from_pretrained(base, adapter).merge_and_unload()) "
            "and prune that."
        )
    if task is None:
        return _named_class(model, AutoConfig.from_pretrained(model, **_hub_options(kwargs)), **kwargs)
    from optimum.exporters.tasks import TasksManager  # slow to import

    task = _ALSO.get(task, task)
    if task not in TasksManager.get_all_tasks():
        raise ValueError(f"unknown task {task!r}; known: {', '.join(sorted(TasksManager.get_all_tasks()))}.")
    return TasksManager.get_model_class_for_task(task)


def _check_config(file: Path) -> None:
    """Raise if transformers would stumble over a config, rather than name it.

    Raises:
        ValueError: it is no JSON object, too large, nested too deeply, or says of a quantization what is no name.
    """
    if not file.is_file():
        return
    entry = read_object(file).get("quantization_config") or {}
    if not isinstance(entry, dict) or not isinstance(entry.get("quant_method", ""), str):
        raise ValueError(f"{file} is damaged: quantization_config must be an object whose quant_method is a name.")


def _named_class(model: str | os.PathLike, config: PreTrainedConfig, **kwargs) -> type:
    name = named_by(config) or ""
    code = {auto: place for auto, place in own_code(config, name or None).items() if auto.startswith("AutoModel")}
    if code and not kwargs.get("trust_remote_code"):
        raise ValueError(
            f"{model} brings code of its own for {name or 'its model'} ({next(iter(code.values()))}): read it, then "
            "pass trust_remote_code=True (--trust-remote-code) to run it, or task= to load a class of transformers."
        )
    if len(code) > 1 and not name:
        raise ValueError(f"{model} brings code for {', '.join(code)}, and names none of them: give task= (--task).")
    if code and not hasattr(transformers, next(iter(code))):
        raise ValueError(f"{model} brings code for {next(iter(code))}, which is no Auto class: config.json is damaged.")
    if code:
        return getattr(transformers, next(iter(code)))
    if not name:
        logger.warning(f"{model} names no class: loading it without a head; give task= for one.")
        return AutoModel
    kind = class_named(name)
    if kind is None:
        what = "no model but something else of" if hasattr(transformers, name) else "no class of"
        raise ValueError(
            f"{model} was saved from a {name}, which is {what} transformers: load it with that class and pass the "
            "model object, or give task= (--task), e.g. feature-extraction for the encoder without its head."
        )
    return kind


def load_processor(model: str | os.PathLike, modality: Modality = TEXTS, **kwargs) -> Any:
    """The checkpoint's processor; `None`, with a warning, if it has none.

    Args:
        model: Hub id or local folder.
        modality: the model's modality, which says which processor to load.
        **kwargs: as for `load_model`; only the Hub's options are used.
    """
    try:
        processor = modality.auto_processor.from_pretrained(model, **_hub_options(kwargs))
    except (OSError, ValueError):
        processor = None
    except ImportError as error:  # Pillow is not there; pixel values need no processor
        logger.warning(f"the image processor of {model} cannot be loaded: {error}")
        return None
    # Without tokenizer files, transformers v5 makes a tokenizer that knows special tokens only.
    specials = getattr(processor, "all_special_ids", None)
    if processor is None or (specials is not None and len(processor) <= len(specials)):
        logger.warning(
            f"{model} has no {modality.processor}: pass processor=, or calibration data that are {modality.processed}."
        )
        return None
    return processor


def _hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
