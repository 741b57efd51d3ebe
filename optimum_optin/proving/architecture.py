"""`check_architecture`: whether a model's groups are what its row says, proved on this very model."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import PreTrainedModel

from ..architectures.find import find_groups, stack_inputs
from ..architectures.group import Groups
from ..editing.surgery import check_sliceable
from ..running.batch import Batch
from ..running.facts import measured_once
from ..running.forward import check_forward
from ..running.freezing import frozen
from ..running.prepared import check_prepared
from ..running.wrappers import check_model
from ..storage.integrity import check_own
from ..storage.loading import check_loaded
from .cuts import cut_trials, without_effect
from .linears import counter_problems, running_problems
from .observation import Observation, observe, rounding_of
from .repeats import check_repeats
from .samples import made_up_sample
from .stream import refit_problems
from .verdict import ArchitectureProof, GroupProof


def check_architecture(model: PreTrainedModel, sample: Batch | None = None) -> ArchitectureProof:
    """Prove that a model can be pruned as its row in the table of architectures says, or say why it cannot.

    Some ten passes of one sample and a copy that holds what is cut; the model is the same afterwards. `OptinPruner`
    does the same before it scores or prunes.

    Args:
        model: a model of transformers.
        sample: inputs of the model, a batch of one sample or more; `None` makes one up. What is proved holds for what
            the model does with this sample.

    Returns:
        What was proved of each group, and why the rest was not. See `ArchitectureProof.check`.

    Raises:
        ValueError: the architecture is unknown, or there is something else on the model that cannot be cut.
        TypeError: not a model of transformers.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from optimum_optin import check_architecture
        >>> shape = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        ...                    intermediate_size=64)
        >>> check_architecture(BertModel(shape)).proved
        True
    """
    check_model(model)
    groups = sliceable_groups(model)
    return prove(model, groups, None if sample is None else send_to_device(dict(sample), model.device))


def sliceable_groups(model: PreTrainedModel) -> Groups:
    """The model's groups, if nothing that can be seen without a pass is in the way of a cut.

    Raises:
        ValueError: says what is in the way, and what to do.
    """
    check_loaded(model)
    check_forward(model, stack_inputs(model).values())
    groups = find_groups(model)
    check_sliceable(model, groups)
    check_own(model)
    check_prepared(model)
    return groups


def check_proved(model: nn.Module, groups: Groups, *, refits: bool, floors: Mapping[str, int]) -> None:
    """Raise if it cannot be proved that a model can be pruned; once for each model object and row, if it can.

    Args:
        model: the model, unchanged.
        groups: its groups.
        refits: see `ArchitectureProof.check`.
        floors: see `ArchitectureProof.check`.

    Raises:
        ValueError: see `ArchitectureProof.check`.
    """

    def measure() -> ArchitectureProof:
        proof = prove(model, groups)
        proof.check(refits=refits, floors=floors)  # what is in the way may be mended on the same object
        return proof

    attention = getattr(model.config, "_attn_implementation", None)
    proof = measured_once(model, ("proof", repr(groups), model.dtype, attention), measure)
    proof.check(refits=refits, floors=floors)


@torch.inference_mode(False)
def prove(model: nn.Module, groups: Groups, sample: Batch | None = None) -> ArchitectureProof:
    """Prove what can be proved of a model's groups on one sample; see `check_architecture`."""
    started = time.perf_counter()
    rounding = rounding_of(model)
    found = ArchitectureProof(type(model).__name__, model.config.model_type, rounding=rounding)
    gpus = sorted({each.device.index for each in model.parameters() if each.is_cuda})
    with torch.random.fork_rng(gpus), frozen(model):
        sample = made_up_sample(model) if sample is None else sample
        try:
            dense = _observed(model, groups, sample)
            repeatable = check_repeats(model, groups, sample, dense.states, rounding)
        except ValueError as error:
            found = replace(found, problem=str(error))
        else:
            proofs, largest = _proofs(model, groups, sample, dense, rounding)
            found = replace(found, groups=proofs, repeatable=repeatable, largest=largest)
    shapes = {name: tuple(value.shape) for name, value in sample.items()}
    return replace(found, sample=shapes, seconds=time.perf_counter() - started)


def _proofs(
    model: nn.Module, groups: Groups, sample: Batch, dense: Observation, rounding: float
) -> tuple[tuple[GroupProof, ...], float]:
    """What was proved of each group, and the largest difference that was taken for rounding."""
    odd = running_problems(groups, dense)
    running = replace(groups, members=tuple(group for group in groups if group.key not in odd))
    trials = cut_trials(model, running, sample, rounding) if len(running) else {}
    cut = {key: trial.problem for key, trial in trials.items() if trial.problem}
    refit = refit_problems(model, groups, sample, dense, rounding)
    idle = without_effect(model, running, sample, dense)
    cut |= counter_problems(model, groups) | odd  # what is worst comes last
    proofs = []
    for group in groups:
        least = trials[group.key].least if group.key in trials else 1
        proofs.append(GroupProof(group, least, cut.get(group.key), refit.get(group.key), group.key not in idle))
    return tuple(proofs), max((trial.largest for trial in trials.values()), default=0.0)


def _observed(model: nn.Module, groups: Groups, sample: Batch) -> Observation:
    try:
        dense = observe(model, groups, sample)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a forward may raise
        others = [name for name in inspect.signature(model.forward).parameters if name not in sample]
        raise ValueError(
            f"it does not run on {' and '.join(sample)} ({type(error).__name__}: {error}). Its forward takes also "
            f"{', '.join(others) or 'nothing'}: what it needs of that, data must hold, or a subclass make up"
        ) from error
    consumers = {group.key for group in groups}
    for name, state in dense.states.items():
        if name not in consumers and not state.isfinite().all():
            raise ValueError(
                f"the output of {name} is not finite on one sample: check the weights, and prefer float32 or bfloat16 "
                "to float16"
            )
    return dense
