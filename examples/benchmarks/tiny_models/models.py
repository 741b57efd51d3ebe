"""A tiny model of any model type, with perturbed weights, and an input that it runs on."""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from .configs import tiny_config
from .inputs import Inputs, with_placeholders

LARGEST = 45e6  # parameters: more means that the rules did not shrink something


class NotRun(Exception):
    """No input was found that the model runs on."""


def tiny_model(model_type: str) -> nn.Module:
    """A tiny base model in evaluation mode and float32, with every tensor moved off its initial symmetry."""
    config = tiny_config(model_type)
    torch.manual_seed(0)
    with torch.device("meta"):
        size = sum(each.numel() for each in AutoModel.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{model_type}: {size / 1e6:.0f} million parameters are not tiny")
    model = AutoModel.from_config(config, attn_implementation="eager").float().eval()
    perturb(model)
    return model


@torch.no_grad()
def perturb(model: nn.Module) -> None:
    """Add noise to every parameter and to the statistics of batch norms, in place."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            fan = parameter[0].numel() if parameter.dim() > 1 else 25
            parameter.add_(torch.randn(parameter.shape, generator=generator) / max(fan, 1) ** 0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.2 * torch.randn(buffer.shape, generator=generator))
        if name.endswith("running_var"):
            buffer.mul_(1 + torch.rand(buffer.shape, generator=generator))


def tiny_inputs(model: nn.Module) -> dict[str, Any]:
    """The first inputs on which the model runs and gives finite numbers.

    Raises:
        NotRun: with the errors of all that was tried.
    """
    errors: list[str] = []
    for inputs in Inputs(model).candidates():
        error = attempt(model, inputs)
        if error is None:
            return inputs
        errors.append(f"{shapes_of(inputs)}: {error}")
        for more in with_placeholders(model, inputs, error):
            if (again := attempt(model, more)) is None:
                return more
            errors.append(f"{shapes_of(more)}: {again}")
            for most in with_placeholders(model, more, again):
                if attempt(model, most) is None:
                    return most
    raise NotRun("\n".join(errors) or f"no argument of forward{tuple(Inputs(model).arguments)} is known")


@torch.no_grad()
def attempt(model: nn.Module, inputs: dict[str, Any]) -> str | None:
    """Why a model does not run on these inputs; None if it does."""
    torch.manual_seed(0)
    try:
        outputs = floats_of(model(**inputs))
    except Exception as error:  # whatever a model raises on what it does not take
        return _short(error)
    if not outputs:
        return "no output of floating point"
    return None if all(each.isfinite().all() for each in outputs[:1]) else "outputs are not finite"


def floats_of(outputs: Any) -> list[Tensor]:
    """The floating-point tensors among outputs."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    if hasattr(outputs, "values"):
        outputs = list(outputs.values())
    return [each for part in outputs for each in floats_of(part)] if isinstance(outputs, (list, tuple)) else []


def shapes_of(inputs: dict[str, Any]) -> str:
    """Names and shapes, for messages."""
    return ", ".join(f"{name}{list(each.shape) if isinstance(each, Tensor) else each}" for name, each in inputs.items())


def _short(error: Exception) -> str:

    frames = traceback.extract_tb(error.__traceback__)
    place = next(
        (f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in reversed(frames) if "models/" in f.filename), ""
    )
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} @ {place}"
