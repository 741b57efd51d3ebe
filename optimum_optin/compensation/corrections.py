"""What is refitted at a stop: regressions of errors on inputs, and how weights and biases take their answers in.

Producers are corrected for what their input lacks, as far as the input itself tells; a consumer, for all that the
residual stream behind it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..architectures.group import channel_width
from ..passes.course import Stop
from ..passes.joins import Join
from ..passes.walk import PrunedWalk, Rows
from ..running.experts import add_to_expert, is_packed, routed, weight_of_expert
from ..running.linears import WIDEST, add_to_weight, is_convolution, places_of, weight_of
from ..running.memory import at_least_single, give_back
from ..sums.moments import is_wide
from .ridge import Regression, add_up_regressions, begin_together, solve_ridge

Walks = list[PrunedWalk | None]
"""One walk for each batch; `None` where another process has it."""

Sums = tuple[Regression, Regression]
"""The sums of rows to fit, and of those that are held out."""

_LEAST_SCALE = 1e-3  # share of the mean scale
_SWEEPS = 2  # over the experts of a layer
_HELD_OUT = 5  # every fifth batch (or token, in a single batch) chooses the strength, and whether to refit at all


def refit_at(
    model: nn.Module,
    stop: Stop,
    walks: Walks,
    strength: float | None,
    *,
    join: Join | None,
    earlier: Sequence[Sums] = (),
) -> Sequence[Sums]:
    """Refit what is about to run at a stop.

    Args:
        model: the pruned model.
        stop: the stop.
        walks: all walks through the model.
        strength: see `refit`.
        join: the join of what the consumer writes.
        earlier: what an earlier round returned; then what is refitted goes by what a ReLU lets pass.

    Returns:
        The sums of each regression.
    """
    try:
        if is_packed(model.get_submodule(stop.path)):
            _refit_experts(model.get_submodule(stop.path), stop, walks, strength, join=join)
            return []
        if stop.consumer is not None:
            return _refit_consumer(model, stop, walks, strength, join=join, earlier=earlier)
        if is_convolution(model.get_submodule(stop.path)):
            return _refit_convolutions(model, stop, walks, strength, earlier)
        return _refit_linears(model, stop, walks, strength)
    except ValueError as error:
        raise ValueError(f"{stop.group.key} cannot be refitted: {error}; check its weights and the data.") from error


def _refit_linears(pruned: nn.Module, stop: Stop, walks: Walks, strength: float | None) -> Sequence[Sums]:
    """Let producers write what they would write of the dense model's input x*, as far as their own input x tells.

    W reads the best guess at it, A x + c, instead of x: W <- W A, b <- b + W c.
    """
    producers = [pruned.get_submodule(path) for path in stop.producers]
    inputs = weight_of(producers[0]).shape[1]
    if inputs > WIDEST:  # a guess at each of so many inputs does not fit into memory
        return []
    (sums,) = _sums(walks, stop, [_Wanted(producers[0], inputs, PrunedWalk.input_errors)], strength)
    # BEiT's key projection has no bias beside others that have one: each gets the guess that it can hold.
    for intercept in sorted({producer.bias is not None for producer in producers}):
        change, shift = solve_ridge(*sums, intercept, strength)
        for producer in (each for each in producers if (each.bias is not None) == intercept):
            weight = at_least_single(weight_of(producer))
            _add(producer, None, weight @ change.to(weight), weight @ shift.to(weight))
    return [sums]


def _refit_convolutions(
    pruned: nn.Module, stop: Stop, walks: Walks, strength: float | None, earlier: Sequence[Sums]
) -> Sequence[Sums]:
    """The same for patches, which hold many more numbers than a convolution writes: what it writes is guessed."""
    norms = {each.path: each.norm and pruned.get_submodule(each.norm) for each in stop.group.producers}
    producers = {path: pruned.get_submodule(path) for path in stop.producers}
    wanted = []
    for path, producer in producers.items():
        rows_of = partial(PrunedWalk.map_errors, path=path, norm=norms.get(path), rectified=bool(earlier))
        wanted.append(_Wanted(producer, len(weight_of(producer)), rows_of, places_of(producer)))
    found = _sums(walks, stop, wanted, strength, earlier)
    for (path, producer), sums in zip(producers.items(), found, strict=True):
        _correct(producer, sums, strength, norm=norms.get(path))
    return found


def _refit_consumer(
    pruned: nn.Module,
    stop: Stop,
    walks: Walks,
    strength: float | None,
    *,
    join: Join | None,
    earlier: Sequence[Sums],
) -> Sequence[Sums]:
    """Let a consumer write what makes up for all that the stream after it lacks, as far as its input tells."""
    consumer = pruned.get_submodule(stop.path)
    rows_of = partial(PrunedWalk.output_errors, rectified=bool(earlier))
    places = places_of(consumer, channel_width(stop.group, stop.consumer))
    wanted = [_Wanted(consumer, len(weight_of(consumer)), rows_of, places)]
    found = _sums(walks, stop, wanted, strength, earlier)
    norm = stop.consumer.norm and pruned.get_submodule(stop.consumer.norm)
    _correct(consumer, *found, strength, norm=norm, scale=None if join is None else join.scale)
    return found


def _refit_experts(experts: nn.Module, stop: Stop, walks: Walks, strength: float | None, *, join: Join | None) -> None:
    """Let experts write what makes up for all that the stream after them lacks at the tokens that each is given.

    The errors of a token are those of all its experts. So one expert after the other is refitted to what is left of
    them, and then all once more. One without tokens (padding is none), or none that are held out, stays as it is.
    """
    found = [(index, *walk.experts_errors(stop)) for index, walk in _reached(walks, stop)]
    outputs, neurons = weight_of_expert(experts, 0).shape
    scale = 1.0 if join is None or join.scale is None else join.scale
    for expert in [*range(experts.num_experts)] * _SWEEPS:
        fit, held_out = (Regression(neurons, outputs, experts.down_proj.device) for _ in range(2))
        given = [routed(experts, read, expert) for _, read, _, _ in found]
        begin_together([fit, held_out], next((own.inputs for own in given if len(own.inputs)), None))
        for (index, _, errors, weights), own in zip(found, given, strict=True):
            rows = own.inputs, errors[own.tokens], weights[own.tokens]
            _add_rows((fit, held_out), rows, own.tokens, batch=index if len(walks) > 1 else None)
        add_up_regressions([fit, held_out])
        if not (fit.weight and held_out.weight):
            continue
        change, _ = solve_ridge(fit, held_out, False, strength)
        add_to_expert(experts, expert, change * _inverse(scale, change[:, 0])[:, None])
        for (_, _, errors, _), own in zip(found, given, strict=True):
            errors.index_add_(0, own.tokens, -(own.inputs.to(change) @ change.T).to(errors))


def _correct(
    linear: nn.Module,
    sums: Sums,
    strength: float | None,
    *,
    norm: nn.Module | None,
    scale: Tensor | None = None,
) -> None:
    """Correct errors of what a linear or convolution writes, behind a batch norm and a layer scale if there are any."""
    weight, bias = solve_ridge(*sums, linear.bias is not None or norm is not None, strength)
    places = weight_of(linear).shape[1] // max(weight.shape[1], 1)
    if places > 1:  # what is told by a mean of places changes all of them alike
        weight = weight.repeat_interleave(places, 1) / places
    if norm is not None:
        scale = _slope(norm) if scale is None else _slope(norm) * scale.to(norm.running_var)
    if scale is not None:
        share = _inverse(scale, weight)
        weight, bias = weight * share[:, None], bias * share
    _add(linear, norm, weight, bias)


def _add(linear: nn.Module, norm: nn.Module | None, weight: Tensor, bias: Tensor) -> None:
    """Add changes to a linear or a convolution, in place: of the bias, if it has none, to what follows it."""
    if weight.numel():
        add_to_weight(linear, weight)
    if linear.bias is not None:
        linear.bias.add_(bias.to(linear.bias))  # not set anew: one without elements is no parameter
    elif norm is not None:
        norm.running_mean -= bias.to(norm.running_mean)


def _slope(norm: nn.Module) -> Tensor:
    """What a batch norm multiplies each channel by, shape (channels,)."""
    slope = (norm.running_var + norm.eps).rsqrt()
    return slope if norm.weight is None else slope * norm.weight


def _inverse(scale: Tensor | float, like: Tensor) -> Tensor:
    """1 / layer scale for each channel, by which changes are multiplied; 0 for channels all but switched off."""
    scale = torch.as_tensor(scale).to(like).expand(len(like))
    return torch.where(scale.abs() > _LEAST_SCALE * scale.abs().mean(), 1 / scale, 0)


@dataclass(frozen=True)
class _Wanted:
    """A regression that is wanted.

    Args:
        linear: the linear or convolution whose input tells the errors.
        outputs: how many errors a row has.
        rows_of: gives the rows of a walk.
        places: see `places_of`; the rows are of the mean of so many features each.
    """

    linear: nn.Module
    outputs: int
    rows_of: Callable[[PrunedWalk, Stop], Rows | None]
    places: int = 1

    def sums(self) -> tuple[Regression, Regression]:
        """Empty sums, to fit and held out."""
        sizes = weight_of(self.linear).shape[1] // self.places, self.outputs, self.linear.weight.device
        return Regression(*sizes), Regression(*sizes)

    def rows(self, walk: PrunedWalk, stop: Stop) -> Rows | None:
        """The rows of a walk, which has reached the stop."""
        rows = self.rows_of(walk, stop)
        if rows is None or self.places == 1:
            return rows
        return rows[0].unflatten(-1, (-1, self.places)).mean(-1), *rows[1:]


def _sums(
    walks: Walks, stop: Stop, wanted: Sequence[_Wanted], strength: float | None, earlier: Sequence[Sums] = ()
) -> list[Sums]:
    """For each regression that is wanted, the sums of all walks' rows; with those of the same rows and other errors.

    Where the strength is given, no row is held out to choose it.
    """
    sums = [(fit.of_other_errors(), held_out.of_other_errors()) for fit, held_out in earlier]
    sums = sums or [each.sums() for each in wanted]
    new = [] if earlier else list(sums)
    are_wide = any(is_wide(len(fit.cross)) for fit, _ in sums)
    for index, walk in _reached(walks, stop):
        for each, pair in zip(wanted, sums, strict=True):
            rows = each.rows(walk, stop)
            if rows is None or not len(rows[0]):
                continue
            while pair in new:  # in the same order on all processes
                first = new.pop(0)
                begin_together(first, rows[0] if first is pair else None)
            if strength is not None:
                pair[0].add(*rows)
            else:
                _add_rows(pair, rows, torch.arange(len(rows[0])), batch=index if len(walks) > 1 else None)
        if are_wide:  # the milliseconds that it takes are nothing beside such a pass
            give_back()  # each pass leaves holes between what is in use: they add up, and to solve takes large matrices
    for pair in new:  # of which this process has no rows
        begin_together(pair, None)
    add_up_regressions([each for pair in sums for each in (pair if strength is None else pair[:1])])
    return sums


def _reached(walks: Walks, stop: Stop) -> Iterator[tuple[int, PrunedWalk]]:
    """The walks that reach a stop, by batch; first those to fit, whose mean is nearer to that of all."""
    for index, walk in sorted(enumerate(walks), key=lambda place: place[0] % _HELD_OUT == 0):
        if walk is not None and walk.reach(stop):
            yield index, walk


def _add_rows(sums: Sums, rows: Rows, tokens: Tensor, *, batch: int | None) -> None:
    """Add rows to those to fit, or to those that are held out.

    Args:
        sums: both sums.
        rows: the rows.
        tokens: which token of the batch each is of.
        batch: which batch they are of; `None` if there is only one, of which some tokens are held out.
    """
    fit, held_out = sums
    if batch is not None:
        (held_out if batch % _HELD_OUT == 0 else fit).add(*rows)
        return
    is_held_out = tokens % _HELD_OUT == 0
    held_out.add(*(part[is_held_out] for part in rows))
    fit.add(*(part[~is_held_out] for part in rows))
