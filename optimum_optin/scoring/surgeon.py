"""Trajectory-weighted surgeon: what removing a unit costs after the kept ones have taken over what they can.

After a refit of its consumer, removing a unit costs only what the kept units cannot express. With H the covariance of
the consumer's inputs and Gamma = E[g g^T] the covariance of the probes' gradients at its output, removing column j of
the weight W costs (w_j^T Gamma w_j) / [H^-1]_jj, the optimal brain surgeon's form (Hassibi & Stork 1993) in the metric
of OPTIN's trajectory. Units are removed greedily, with updates of W and H^-1; each group yields a nested order and
increments that never fall, which are per-unit scores again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ..architectures.group import Consumer, Group, Groups, channel_width, consumers_by_path
from ..comparing.losses import probe_manifold, probe_output
from ..config import OptinConfig
from ..discovery.find import groups_of
from ..discovery.next_tokens import predicts_next_token
from ..editing.masking import gradients
from ..passes.calibration import Calibration, calibration_of
from ..passes.hooks import Passage
from ..passes.starts import DensePass, Start, real_rows, run_dense, starts_of, tensors_of
from ..passes.trajectory import trajectory_features
from ..running.experts import is_packed
from ..running.linears import drawn_places, features_of, places_of, rows_read, rows_written, weight_of
from ..running.processes import add_up, fair_share
from ..running.randomness import generators
from ..stages.resuming import Outcome, once, resumed
from ..stages.tensor_files import below, prefixed
from ..sums.moments import BlockMoments, Moments, precision_of
from ..sums.symmetric import Grams, numbers_of
from .experts import ExpertSums
from .parts import parts_of, room_for
from .registry import Scored, Terms, Totals, flattened, register_scorer, terms_of
from .removal import Reader, order_cost, removal_scores

_ORDERS = 0.2  # part of the time that orders of removal are expected to take


@register_scorer("surgeon")
@torch.inference_mode(False)
def score_surgeon(model: nn.Module, groups: Groups, calibration: Calibration, config: OptinConfig) -> Scored:
    """Costs of removal after a refit, one term for each metric, with the starts of the refit; see `register_scorer`.

    It takes half of `config.probes`, but at least one for every minibatch: here a probe has a gradient at every token.
    Probe k sees batch k mod len(calibration). Beside a term of the output, half of them have one of the trajectory.
    """
    groups, calibration = groups_of(model, groups), calibration_of(model, calibration)
    consumers = consumers_by_path(groups)
    sizes = {path: _size(model, group, each) for path, (group, each) in consumers.items()}
    parts = parts_of(groups, sizes, room_for(model))
    probes = max(config.probes // 2, len(calibration))
    terms: Terms = {}
    first: Outcome | None = None  # its passes give starts, and traces of the metrics of all consumers
    for number, part in enumerate(parts, start=1):
        title = "surgeon scores" if len(parts) == 1 else f"surgeon scores, part {number} of {len(parts)}"
        score_part = partial(
            _score_part,
            model,
            groups if first is None else part,
            part,
            calibration,
            config,
            probes=probes,
            traces=first and below("traces/", first.common),
            title=title,
            share=1 / len(parts),
        )
        outcome = once(f"part-{number}", score_part, 1 / len(parts))
        first = first or outcome
        for name, scores in terms_of(below("terms/", outcome.common)).items():
            terms.setdefault(name, {}).update(scores)
    starts = starts_of(first.own, calibration.batches, calibration.real)
    return Scored({name: {group.key: scores[group.key] for group in groups} for name, scores in terms.items()}, starts)


def _score_part(
    model: nn.Module,
    groups: Groups,
    part: Groups,
    calibration: Calibration,
    config: OptinConfig,
    *,
    probes: int,
    traces: Mapping[str, Tensor] | None,
    title: str,
    share: float,
) -> Outcome:
    """Score the groups of a part, with traces if they are known; else these and starts come out as well.

    Args:
        groups: the groups that the passes see: all, where traces are wanted.
    """
    gathered = _Gathered(model, part, calibration, counted=traces is None)
    streams = generators(config.seed, probes)  # the same draws for each part
    passes = share * (1 - _ORDERS)
    with_trajectory = [_probes_trajectory(probe, len(calibration)) for probe in range(probes)]
    mine = fair_share([2.0 + each for each in with_trajectory])  # passes, forward and backward
    for probe in resumed(mine, title, "probe", name="probes", sums=gathered, share=passes):
        index, generator = probe % len(calibration), streams[probe]
        batch, real = calibration.batches[index], calibration.real[index]
        ran = run_dense(model, groups, batch, real, rows=config.rows, generator=generator)
        start = _add_probe(
            gathered.sums,
            gathered.traces,
            ran,
            config.temperature,
            generator,
            with_trajectory=with_trajectory[probe],
        )
        del ran  # or what layers returned would be in memory while orders are found
        if probe < len(calibration):
            gathered.starts[index] = start
    for each in gathered.sums.values():
        each.add_up()
    if traces is None:
        traces = gathered.traces
        add_up(*traces.values())
        own = tensors_of(gathered.starts)
    else:
        own = None
    counts = {"output": probes, "trajectory": sum(with_trajectory) if "output" in traces else probes}
    terms = _removal_terms(model, part, gathered.sums, traces, counts=counts, share=share * _ORDERS)
    return Outcome(prefixed("terms/", flattened(terms)) | prefixed("traces/", traces), own)


class _Gathered:
    """What the probes of a part leave: sums at its consumers; in the first pass over the data, traces and starts."""

    def __init__(self, model: nn.Module, part: Groups, calibration: Calibration, *, counted: bool):
        self.calibration = calibration
        self.sums = {path: _sums_at(model, group, each) for path, (group, each) in consumers_by_path(part).items()}
        self.traces: dict[str, Tensor] = {}
        self.starts: list[Start | None] = [None] * len(calibration)
        self.counted = counted

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, for `restore`."""
        found = {}
        for path, each in self.sums.items():
            found |= prefixed(f"sums/{path}/", each.tensors())
        if self.counted:
            found |= prefixed("traces/", self.traces) | prefixed("starts/", tensors_of(self.starts))
        return found

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Hold what `tensors` gave."""
        for path, each in self.sums.items():
            each.restore(below(f"sums/{path}/", saved))
        self.traces.update(below("traces/", saved))
        self.starts[:] = starts_of(below("starts/", saved), self.calibration.batches, self.calibration.real)


def _size(model: nn.Module, group: Group, consumer: Consumer) -> int:
    """Bytes of the sums at a consumer, in float32 (`_Sums`)."""
    if is_packed(module := model.get_submodule(consumer.path)):
        return ExpertSums.size(module)
    outputs, features = weight_of(model.get_submodule(consumer.path)).shape
    places = places_of(model.get_submodule(consumer.path), channel_width(group, consumer))
    return 4 * (2 * numbers_of(outputs) + (numbers_of(features) if places == 1 else 2 * features * places))


def _add_probe(
    sums: Mapping[str, _Sums | ExpertSums],
    traces: dict[str, Tensor],
    ran: DensePass,
    temperature: float,
    generator: torch.Generator,
    *,
    with_trajectory: bool,
) -> Start:
    """Add the minibatch of a pass, and one probe of each term, to the sums and traces, in place; return the start of
    its walk.

    Args:
        with_trajectory: whether to probe the trajectory, if the output is probed.
    """
    for term in ("trajectory",) if ran.output is None else ("output", "trajectory"):  # in all processes
        traces.setdefault(term, torch.zeros((), dtype=torch.float64))
        for each in sums.values():
            each.expect(term)
    features = trajectory_features(ran.layers, ran.rows, ran.real, ran.groups.maps)
    functionals = {}
    if ran.output is not None:  # drawn first, as in `dense_pass`
        functionals["output"] = probe_output(ran.output.values, temperature, ran.output.kind, generator)
    if with_trajectory or ran.output is None:
        moves = [probe_manifold(each, generator) for each in features.values()]
        functionals["trajectory"] = sum(move.to(moves[0].device) for move in moves)
    kept = {group.key: real_rows(group, ran.seen[_reader(group)].input, ran.real) for group in ran.groups}
    consumers = {path: group for path, (group, _) in consumers_by_path(ran.groups).items()}
    slopes, keys = {}, [group.key for group in consumers.values()]
    for number, (term, functional) in enumerate(functionals.items(), start=1):
        options = {"keep_graph": number < len(functionals), "beside": slopes.get("output", ())}
        slopes[term] = gradients(functional, ran.written(), keys, **options)
        for (path, group), gradient in zip(consumers.items(), slopes[term], strict=True):
            rows = _rows(rows_written(ran.model.get_submodule(path), gradient), kept[group.key]).float()
            traces[term] += rows.square().sum(dtype=torch.float64).cpu()
            if path in sums:
                sums[path].add_gradients(term, rows, ran.seen[path], kept[group.key])
    for path, group in consumers.items():
        module, passage = ran.model.get_submodule(path), ran.seen[path]
        places = drawn_places(module, passage.output, generator)
        if path in sums:
            sums[path].add_inputs(passage, kept[group.key], places)
    return ran.start(slopes.get("output"), generator)


def _probes_trajectory(probe: int, batches: int) -> bool:
    """Whether a probe of the output has one of the trajectory beside it: every second one, and of each batch."""
    return (probe // batches + probe % batches) % 2 == 0


def _reader(group: Group) -> str:
    """The first linear of a group that reads its tokens; of packed weights of an attention, none is a module."""
    return (*group.producers, *group.consumers)[0].path


def _removal_terms(
    model: nn.Module,
    groups: Groups,
    sums: Mapping[str, _Sums | ExpertSums],
    traces: Mapping[str, Tensor],
    *,
    counts: Mapping[str, int],
    share: float,
) -> Terms:
    """The costs of removal in each term, along one order for each group: by the sum of the terms, normalised to one.

    A term's trace is of as many probes as `counts` says. In a language model, the order goes by the output alone;
    docs/source/experiments.mdx shows what that brings.
    """
    names = list(traces)
    by_output = "output" in names and predicts_next_token(model)
    shares = [float(name == "output") if by_output else 1.0 for name in names]
    traces = {name: max(float(trace), 1e-300) for name, trace in traces.items()}
    totals = Totals({name: {} for name in names})
    for group in groups:
        for name in names:
            zeros = torch.zeros(group.units, dtype=torch.float64, device=sums[group.consumers[0].path].device)
            totals.terms[name][group.key] = zeros
    costs = [sum(sums[path].order_cost() for path in {each.path for each in group.consumers}) for group in groups]
    for index in resumed(fair_share(costs), "removal orders", "group", name="orders", sums=totals, share=share):
        group = groups[index]
        try:
            first = sums[group.consumers[0].path]
            if isinstance(first, ExpertSums):
                scores = first.removal_scores(traces, shares)
            else:
                readers = [sums[each.path].reader(traces, group, each) for each in group.consumers]
                scores = removal_scores(readers, group.units, shares)
        except ValueError as error:
            raise ValueError(f"{group.key} cannot be scored: {error}; check its weights and the data.") from error
        for name, score in zip(names, scores, strict=True):
            totals.add(name, group.key, score * (traces[name] / counts[name]))
    return totals.means(1)


def _rows(values: Tensor, real: Tensor | None) -> Tensor:
    """The rows of the real tokens, on the device of the values (a model may be spread over devices)."""
    if real is None:
        return values.flatten(0, -2)
    real = real.to(values.device)
    return values[real.flatten() if values.dim() == 2 else real]  # tokens in rows, sample by sample


def _sums_at(model: nn.Module, group: Group, consumer: Consumer) -> _Sums | ExpertSums:
    module = model.get_submodule(consumer.path)
    return ExpertSums(module) if is_packed(module) else _Sums(model, group, consumer)


class _Sums:
    """Running sums at one consumer: inputs for H, gradients at the output for Gamma."""

    def __init__(self, model: nn.Module, group: Group, consumer: Consumer):
        self.module = module = model.get_submodule(consumer.path)
        # A bias, or the mean of a batch norm, absorbs the mean of what is removed.
        self.centred = module.bias is not None or consumer.norm is not None
        self.device = module.weight.device
        outputs, features = weight_of(module).shape
        places = places_of(module, channel_width(group, consumer))
        # At BERT-base's width, sums in float64 would take twice the model's own memory.
        self.inputs = (
            Moments(features, self.device, torch.float32)
            if places == 1
            else BlockMoments(features // places, places, self.device)
        )
        self.metrics = Grams(outputs, self.device)

    def expect(self, term: str) -> None:
        """Have a sum of gradients of a term, though none may come: those of other processes will."""
        self.metrics.expect(term)

    def add_inputs(self, passage: Passage, real: Tensor | None, places: Tensor | None) -> None:
        self.inputs.add(_rows(rows_read(self.module, passage.input.detach(), places), real))

    def add_gradients(self, term: str, gradients: Tensor, passage: Passage, real: Tensor | None) -> None:
        self.metrics.add(term, gradients)

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, for `restore`."""
        return prefixed("inputs/", self.inputs.tensors()) | prefixed("metrics/", self.metrics.tensors())

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Hold the sums that `tensors` gave."""
        self.inputs.restore(below("inputs/", saved))
        self.metrics.restore(below("metrics/", saved))

    def add_up(self) -> None:
        """Add the other processes' sums."""
        self.inputs.add_up()
        self.metrics.add_up()

    def order_cost(self) -> float:
        """About how many multiplications the order of removal takes."""
        outputs, features = weight_of(self.module).shape
        return order_cost(outputs, features if isinstance(self.inputs, Moments) else 0)

    def reader(self, traces: Mapping[str, float], group: Group, consumer: Consumer) -> Reader:
        """What reads the units of a group, with metrics divided by their sums over all consumers."""
        metrics = [self.metrics.matrix(name) / trace for name, trace in traces.items()]
        if isinstance(self.inputs, Moments):
            features = len(self.inputs.total)
            covariance = partial(self.inputs.covariance, self.centred, precision_of(features))
        else:
            covariance = self.inputs.covariance(self.centred)
        return Reader(weight_of(self.module), covariance, metrics, features_of(self.module, group.inputs_of(consumer)))
