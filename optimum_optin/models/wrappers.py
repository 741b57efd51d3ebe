"""Wrappers that others put around a model, and how to get at the model itself."""

from __future__ import annotations

import os
from typing import Any

from torch import nn
from transformers import PreTrainedModel

# Class, and the package it comes from -> what to give instead. By name, so that no package is imported.
_REMEDIES = {
    ("DataParallel", "torch"): "give its .module",
    ("DistributedDataParallel", "torch"): "give its .module",
    ("FullyShardedDataParallel", "torch"): "each process has a part of its weights: save the whole model (trainer."
    "save_model, accelerator.save_model) and load that with from_pretrained",
    ("DeepSpeedEngine", "deepspeed"): "give its .module, unless ZeRO-3 keeps its weights in parts: then save the whole "
    "model and load that with from_pretrained",
    ("OptimizedModule", "torch"): "prune before torch.compile: give its ._orig_mod",
    ("ScriptModule", "torch"): "give the model that it was traced or scripted from",
    ("GraphModule", "torch"): "give the model that it was traced or exported from",
    ("ExportedProgram", "torch"): "give the model that it was exported from",
    ("PeftModel", "peft"): "merge the adapter: give its .merge_and_unload()",
    ("PeftMixedModel", "peft"): "merge the adapters: give its .merge_and_unload()",
    ("SentenceTransformer", "sentence_transformers"): "give model[0].auto_model, and put what is pruned in its place",
    ("SparseEncoder", "sentence_transformers"): "give model[0].auto_model, and put what is pruned in its place",
    ("MultiVectorEncoder", "sentence_transformers"): "give model[0].auto_model, and put what is pruned in its place",
    ("CrossEncoder", "sentence_transformers"): "give its .model",
    ("SetFitModel", "setfit"): "give its .model_body[0].auto_model",
    ("Pipeline", "transformers"): "give its .model, and its .tokenizer or .image_processor as processor=",
    ("Trainer", "transformers"): "give its .model, unwrapped by trainer.accelerator.unwrap_model",
    ("Accelerator", "accelerate"): "give the model, not what prepares it",
    ("PreTrainedModelWrapper", "trl"): "give its .pretrained_model",
    ("OptimizedModel", "optimum"): "prune the PyTorch model that it was exported from, then export the result",
    ("InferenceSession", "onnxruntime"): "prune the PyTorch model that it was exported from, then export the result",
    ("ModelProto", "onnx"): "prune the PyTorch model that it was exported from, then export the result",
}


def check_model(model: Any) -> None:
    """Raise if this is not a model of transformers, as `from_pretrained` makes it.

    Raises:
        TypeError: says what it is, and how to get at the model in it.
    """
    if isinstance(model, PreTrainedModel):
        return
    remedy, name = _remedy(model), model.__name__ if isinstance(model, type) else type(model).__name__
    raise TypeError(f"model must be a transformers model, got {name}: {remedy}.")


def wrapper_remedy(model: Any) -> str | None:
    """What to give instead of a wrapper, a class or the name of a model; `None` if it is nothing of the kind."""
    if isinstance(model, (str, os.PathLike)):
        return "use from_pretrained for a Hub id or a folder"
    if isinstance(model, type):
        made = f"{model.__name__}.from_pretrained(...)" if hasattr(model, "from_pretrained") else f"{model.__name__}()"
        return f"give an object of that class, e.g. {made}"
    for kind in type(model).__mro__:
        package = kind.__module__.partition(".")[0]
        if (kind.__name__, package) in _REMEDIES:
            return _REMEDIES[kind.__name__, package]
    return None


def _remedy(model: Any) -> str:
    if (remedy := wrapper_remedy(model)) is not None:
        return remedy
    if isinstance(model, nn.Module):
        inside = [name for name, module in model.named_modules() if isinstance(module, PreTrainedModel)]
        if inside:
            return f"give the one inside, .{inside[0]}, and put what is pruned in its place"
        return (
            "any other module needs an example of its inputs: OptinPruner.from_model(module, example_inputs), or "
            "check_architecture(module, sample)"
        )
    return "use from_pretrained for a Hub id or a folder"
