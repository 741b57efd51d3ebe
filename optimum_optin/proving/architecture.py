"""`check_architecture`: whether a model's groups are what its row says, proved on this very model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import PreTrainedModel

from ..architectures.group import Groups
from ..counting.skips import with_skips
from ..discovery.find import find_groups, is_declared, stack_inputs
from ..editing.surgery import check_sliceable
from ..keeping.doors import keeping
from ..keeping.interruption import raise_interruption
from ..models.identity import attention_of, device_of, dtype_of, type_of
from ..models.wrappers import check_model
from ..reasons import reasons_of
from ..running.batch import Batch
from ..running.facts import measured_once
from ..running.forward import check_forward, why_not_run
from ..running.freezing import frozen, kept_buffers
from ..running.prepared import check_prepared
from ..storage.integrity import check_own
from ..storage.loading import check_loaded
from .cuts import cut_trials, without_effect
from .linears import counter_problems, running_problems
from .observation import Observation, consumers_of, linears_of, observe, rounding_of
from .reload import reload_problem
from .repeats import check_repeats
from .samples import made_up_sample
from .stream import refit_problems
from .verdict import ArchitectureProof, GroupProof


@keeping("model")
def check_architecture(model: nn.Module, sample: Batch | None = None, *, reload: bool = False) -> ArchitectureProof:
    """Prove that a model can be pruned as its row says, or as it was traced, or say why it cannot.

    Some sixteen passes of one sample and a copy that holds what is cut; the model is the same afterwards. `OptinPruner`
    does the same before it scores or prunes.

    Args:
        model: a model of transformers, or any other module, then with a sample.
        sample: inputs of the model, a batch of one sample or more; `None` makes one up. What is proved holds for what
            the model does with this sample. A model of a type that is not registered is traced with it (`find_groups`).
        reload: whether to save a copy that is cut to half to a temporary folder as well, load it and compare.

    Returns:
        What was proved of each group, and why the rest was not. See `ArchitectureProof.check`.

    Raises:
        ValueError: the model cannot be traced, or there is something on it that cannot be cut.
        TypeError: not a model of transformers, and no sample.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from optimum_optin import check_architecture
        >>> shape = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        ...                    intermediate_size=64)
        >>> check_architecture(BertModel(shape)).proved
        True
    """
    if sample is None or not isinstance(model, nn.Module):
        check_model(model)
    if sample is not None:
        sample = send_to_device(dict(sample), device_of(model))
    groups = sliceable_groups(model, sample)
    proof = prove(model, groups, sample)
    return _reloaded(model, groups, proof, sample) if reload else proof


def _reloaded(model: nn.Module, groups: Groups, proof: ArchitectureProof, sample: Batch | None) -> ArchitectureProof:
    """A proof with what came of saving and loading what was proved of it."""
    proved = {each.group.key for each in proof.groups if each.cut is None}
    sample = made_up_sample(model, groups) if sample is None else sample
    problem = reload_problem(model, [group for group in groups if group.key in proved], sample)
    return replace(proof, reloaded=problem is None, reload_problem=problem)


def sliceable_groups(model: nn.Module, sample: Batch | None = None) -> Groups:
    """The model's groups, if nothing that can be seen is in the way of a cut.

    Args:
        model: the model.
        sample: see `find_groups`.

    Raises:
        ValueError: says what is in the way, and what to do.
    """
    check_loaded(model)
    if is_declared(model):
        check_forward(model, stack_inputs(model).values())
    else:
        _check_as_made(model)  # tracing takes a while
    groups = find_groups(model, sample)
    check_sliceable(model, groups)
    if is_declared(model):
        _check_as_made(model)
    return groups


def _check_as_made(model: nn.Module) -> None:
    """Raise if a model is not what its class makes, or runs what is not saved with it."""
    if isinstance(model, PreTrainedModel):
        check_own(model)
    check_prepared(model)


def proved(model: nn.Module, groups: Groups, *, refits: bool, floors: Mapping[str, int]) -> Groups:
    """The groups that it was proved of that they can be pruned; proved once for each model object and its groups.

    Of a model whose row says what its groups are, all must be. Of one that was traced, the others are left whole, and
    said to be in `Groups.left_whole`.

    Args:
        model: the model, unchanged.
        groups: its groups.
        refits: see `ArchitectureProof.check`.
        floors: see `ArchitectureProof.check`.

    Raises:
        ValueError: see `ArchitectureProof.check`; or nothing could be proved.
    """

    def measure() -> ArchitectureProof:
        proof = prove(model, groups)
        if is_declared(model):
            proof.check(refits=refits, floors=floors)  # what is in the way may be mended on the same object
        return proof

    proof = measured_once(model, ("proof", repr(groups), dtype_of(model), attention_of(model)), measure)
    if is_declared(model):
        proof.check(refits=refits, floors=floors)
        return replace(groups, members=tuple(each.group for each in proof.groups))
    usable = proof.usable(refits=refits)
    if not usable:
        proof.check(refits=refits, floors=floors)
        raise ValueError(f"nothing of this {proof.name} can be pruned: {_tried(groups)}.")
    return replace(
        groups,
        members=tuple(group for group in groups if group.key in usable),
        left_whole={**groups.left_whole, **proof.reasons(refits=refits)},
    )


def _tried(groups: Groups) -> str:
    left = list(map(str, reasons_of(groups.left_whole)))
    return "; ".join(left[:_FEW]) or "tracing found no units, only weights that all channels go through"


_FEW = 3  # reasons in an error


@torch.inference_mode(False)
def prove(model: nn.Module, groups: Groups, sample: Batch | None = None) -> ArchitectureProof:
    """Prove what can be proved of a model's groups on one sample; see `check_architecture`."""
    started = time.perf_counter()
    rounding = rounding_of(model)
    found = ArchitectureProof(type(model).__name__, type_of(model), rounding=rounding, left_whole=groups.left_whole)
    gpus = sorted({each.device.index for each in model.parameters() if each.is_cuda})
    with torch.random.fork_rng(gpus), frozen(model), kept_buffers(model):
        sample = made_up_sample(model, groups) if sample is None else sample
        try:
            dense = _observed(model, groups, sample)
            repeatable = check_repeats(model, groups, sample, dense.states, rounding)
        except ValueError as error:
            found = replace(found, problem=str(error))
        else:
            if is_declared(model):
                groups = replace(groups, members=with_skips(model, groups, groups.layers, sample))
            proofs, largest = _proofs(model, groups, sample, dense, rounding)
            found = replace(found, groups=proofs, repeatable=repeatable, largest=largest)
    shapes = {name: tuple(value.shape) for name, value in sample.items()}
    return replace(found, sample=shapes, seconds=time.perf_counter() - started)


def _proofs(
    model: nn.Module, groups: Groups, sample: Batch, dense: Observation, rounding: float
) -> tuple[tuple[GroupProof, ...], float]:
    """What was proved of each group, and the largest difference that was taken for rounding."""
    odd = running_problems(model, groups, sample, dense, rounding)
    # Masks on what does not run say nothing; on what runs several times, they do.
    idle = {group.key for group in groups if any(dense.runs[path] == 0 for path in linears_of(group))}
    running = replace(groups, members=tuple(group for group in groups if group.key not in idle))
    trials = cut_trials(model, running, sample, rounding) if len(running) else {}
    cut = {key: trial.problem for key, trial in trials.items() if trial.problem} | counter_problems(model, groups)
    even = replace(groups, members=tuple(group for group in groups if group.key not in odd))
    refit = refit_problems(model, groups, sample, dense, rounding)
    without = without_effect(model, even, sample, dense)
    proofs = []
    for group in groups:
        least = max(group.least, trials[group.key].least if group.key in trials else 1)
        reasons = cut.get(group.key), odd.get(group.key), refit.get(group.key)
        proofs.append(GroupProof(group, least, *reasons, effect=group.key not in without))
    return tuple(proofs), max((trial.largest for trial in trials.values()), default=0.0)


def _observed(model: nn.Module, groups: Groups, sample: Batch) -> Observation:
    try:
        dense = observe(model, groups, sample)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a forward may raise
        raise_interruption(error)
        raise ValueError(f"it {why_not_run(model, sample, error)}") from error
    consumers = consumers_of(groups)
    for name, state in dense.states.items():
        if name not in consumers and not state.isfinite().all():
            raise ValueError(
                f"the output of {name} is not finite on one sample: check the weights, and prefer float32 or bfloat16 "
                "to float16"
            )
    return dense
