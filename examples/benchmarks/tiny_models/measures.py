"""What is measured of one model type: does it run, what is found, proved, cut, and lighter for it."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
import traceback
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from optimum_optin.architectures.group import Group, Groups, Masks
from optimum_optin.discovery.discover import discover
from optimum_optin.editing.surgery import check_sliceable, rewrite
from optimum_optin.proving.architecture import prove
from optimum_optin.proving.verdict import ArchitectureProof
from optimum_optin.storage.record import record_structure, unsavable
from optimum_optin.storage.structure import structure_of

from .judge import Expected, expected_groups
from .models import NotRun, attempt, floats_of, tiny_inputs, tiny_model

EQUAL = 1e-4


def measured(model_type: str, only_run: bool = False) -> dict[str, Any]:
    """All that is measured of one model type; `stage` says how far it came, and `error` why no further.

    Args:
        model_type: of transformers.
        only_run: whether to stop after the first pass.
    """
    result: dict[str, Any] = {"type": model_type, "stage": "build"}
    try:
        model = tiny_model(model_type)
        result |= {"parameters": sum(each.numel() for each in model.parameters()), "stage": "run"}
        inputs = tiny_inputs(model)
        result |= {"inputs": {name: list(value.shape) for name, value in inputs.items()}, "stage": "ran"}
        if not only_run:
            _measure(model, inputs, result)
    except NotRun as error:
        result["error"] = str(error)[-2000:]
    except BaseException as error:  # whatever a model raises
        result["error"] = f"{type(error).__name__}: {error}"[:800]
        result["traceback"] = traceback.format_exc()[-2000:]
    return result


def _measure(model: nn.Module, inputs: dict[str, Any], result: dict[str, Any]) -> None:
    """Find, prove and cut; what is measured is written into `result` as it becomes known."""
    start = time.process_time()
    result["stage"] = "judge"
    expected = expected_groups(copy.deepcopy(model), inputs)  # some keep what a pass computed, with its graph
    result["expected"] = [
        {**dataclasses.asdict(each), "apart": each.apart, "found": False, "proved": False} for each in expected
    ]
    result["stage"] = "discover"
    model.requires_grad_(False)
    groups = discover(model, dict(inputs))
    check_sliceable(model, groups)
    result["stage"] = "prove"
    proof = prove(model, groups, dict(inputs))
    result |= {"seconds": round(time.process_time() - start, 2), "stage": "proved"}
    cut = {each.group.key for each in proof.groups if each.cut is None}
    sure = [group for group in groups if group.key in cut]
    for record, each in zip(result["expected"], expected, strict=True):
        record |= {"found": is_there(each, groups), "proved": is_there(each, sure)}
        if not record["proved"]:
            record["reason"] = reason_of(each, groups, proof)
    result["groups"] = {
        each.group.key: {"units": each.group.units, "least": each.least, "cut": each.cut, "score": each.score}
        for each in proof.groups
    }
    result |= {"problem": proof.problem, "left_whole": dict(groups.left_whole)}
    if not sure:
        return
    result["stage"] = "cut"
    least = {each.group.key: each.least for each in proof.groups}
    masks = halved(sure, least)
    smaller = copy.deepcopy(model)
    rewrite(smaller, sure, masks)
    error = attempt(smaller, inputs)
    if error is not None:
        raise RuntimeError(f"cut to one half, it does not run: {error}")
    result |= {"macs": [macs_of(model, inputs), macs_of(smaller, inputs)], "stage": "save"}
    result |= {"unsaved": [group.key for group in sure if unsavable(model, group)]}
    sure = [group for group in sure if group.key not in result["unsaved"]]
    result |= {"loaded": loading_problem(model, sure, masks, inputs) if sure else "nothing to save", "stage": "done"}


def loading_problem(model: nn.Module, groups: list[Group], masks: Masks, inputs: dict[str, Any]) -> str:
    """What goes wrong when a model is cut, saved, loaded by plain `AutoModel`, and run; empty if nothing does."""
    smaller = copy.deepcopy(model)
    rewrite(smaller, groups, masks)
    try:
        record_structure(smaller, structure_of(groups, masks), groups)
        with tempfile.TemporaryDirectory() as folder:
            smaller.save_pretrained(folder)
            loaded = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
            pairs = zip(outputs_of(loaded, inputs), outputs_of(smaller, inputs), strict=True)
            off = max((difference(*pair) for pair in pairs), default=9.0)
    except Exception as error:  # whatever a class raises
        return f"{type(error).__name__}: {error}"[:500]
    return "" if off < EQUAL else f"outputs are {off:.2g} of their size off"


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """By how much a tensor is off, as a share of its largest number."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """The floating-point outputs of a pass with fixed random numbers."""
    torch.manual_seed(0)
    return floats_of(model(**inputs))


def halved(groups: Iterable[Group], least: dict[str, int]) -> Masks:
    """Every second unit of each group, and at least as many as must stay."""
    return {group.key: _half(group, least[group.key]) for group in groups}


def _half(group: Group, least: int) -> torch.Tensor:
    """A mask of every second unit of a group, or of the first so many where that would be too few or an odd number."""
    half, enough = group.every_other(), group.first(least)
    return (half | enough) if group.multiple == 1 else max(half, enough, key=lambda mask: int(mask.sum()))


@torch.no_grad()
def macs_of(model: nn.Module, inputs: dict[str, Any]) -> int:
    """Multiply-accumulates of one pass, as PyTorch counts them."""
    torch.manual_seed(0)
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops() // 2


def is_there(expected: Expected, groups: Iterable[Group]) -> bool:
    """Whether a group is read by the weight and writes one of those before it.

    Attention heads that share keys and values with all others write queries alone.
    """
    return any(
        expected.read in {part.tensor for part in group.cut.reads}
        and (expected.kind == "attention" or set(expected.written) & {part.tensor for part in group.cut.writes})
        for group in groups
    )


def reason_of(expected: Expected, groups: Groups, proof: ArchitectureProof) -> str:
    """What discovery and proof say of a group that is not proved; empty where they are silent."""
    if proof.problem:
        return proof.problem
    for each in proof.groups:
        if each.cut and is_there(expected, [each.group]):
            return f"{each.group.key}: {each.cut}"
    tensors = {expected.read, *expected.written}
    near = []
    for name, reason in groups.left_whole.items():
        layer, _, role = name.rpartition(".")
        path = groups.layers.get(layer, name)
        if path == "model" or any(tensor.startswith(f"{path}.") for tensor in tensors):
            alike = role.rpartition("_")[0] in expected.read and (
                role.endswith("heads") == (expected.kind == "attention")
            )
            near.append((len(path), alike, f"{name}: {reason}"))
    if near:
        return max(near)[2]
    sides = {f"{expected.read}[1]", *(f"{name}[0]" for name in expected.written)}
    for name, reason in groups.left_whole.items():
        if sides & set(name.split(", ")):
            return f"{next(iter(sides & set(name.split(', '))))}: {reason}"
    return ""
