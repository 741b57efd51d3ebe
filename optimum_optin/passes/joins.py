"""Joins: where what a sublayer writes is added to the residual stream, and by what it is multiplied there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..architectures.group import Group, consumers_by_path
from ..running.feature_maps import as_tokens
from ..running.forward import first_of
from ..running.linears import is_convolution
from .hooks import find_module

_SUMS = 8  # sums after a consumer among which its own is looked for
_ROUNDING = 2  # times the precision of the numbers, that products with the same factor may differ by
_ALIKE = 1e-3  # tokens whose outputs differ by less say nothing about what multiplies them
ADDS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)
_RELUS = {torch.ops.aten.relu.default: False, torch.ops.aten.relu_.default: True}  # whether they work in place
_CAPPED = {torch.ops.aten.hardtanh.default: False, torch.ops.aten.hardtanh_.default: True}  # ReLU6, with its limits


@dataclass(frozen=True)
class Place:
    """A tensor in a pass, told by a module that has it in hand.

    Args:
        path: the module.
        argument: which of its arguments it is, by position or by name; `None` for what it returns (of several, the
            first).
    """

    path: str
    argument: int | str | None = None

    def read(self, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """The argument of a call."""
        return args[self.argument] if isinstance(self.argument, int) else kwargs[self.argument]


@dataclass(frozen=True)
class Join:
    """A sum that a consumer's output is a term of: terms + scale * output.

    Args:
        terms: the other terms that are known when the consumer starts; for each, all places where it is.
        scale: what the output is multiplied by, shape (channels,), on the CPU; `None` for 1.
        of_maps: whether what is added are feature maps, shape (batch, channels, ...).
        is_late: whether there is one other term, of feature maps, which is not known before the consumer runs
            (`lookahead.py`); then `terms` is empty, and nothing but the sum reads the output, which is a term as it is.
    """

    terms: tuple[tuple[Place, ...], ...]
    scale: Tensor | None = None
    of_maps: bool = False
    is_late: bool = False

    def stream(self, terms: Sequence[Tensor], output: Tensor) -> Tensor:
        """The sum, of the shape of the output.

        Args:
            terms: a tensor for each term.
            output: what the consumer wrote, with its channels last, and behind a batch norm what that made of it.
        """
        stream = output if self.scale is None else output * self.scale.to(output)
        for term in terms:
            rows = as_tokens(term, is_map=True) if self.of_maps else term
            stream = stream + rows.to(output.device).reshape(output.shape)
        return stream

    def of(self, channels: Tensor) -> Join:
        """The join of some of the channels alone."""
        return self if self.scale is None else replace(self, scale=self.scale[channels.cpu()])

    def within(self, models: Sequence[nn.Module]) -> Join | None:
        """The join by places that all of these models have; `None` if no term is left."""
        terms = (tuple(place for place in places if _everywhere(models, place.path)) for places in self.terms)
        left = tuple(places for places in terms if places)
        return replace(self, terms=left) if left or self.is_late else None


@contextmanager
def watched_joins(model: nn.Module, groups: Sequence[Group]) -> Iterator[tuple[dict[str, Join], set[str]]]:
    """Find the joins of groups in the one forward pass inside, and what a ReLU reads.

    A join is a sum of two tensors of one size, one of which is the consumer's output times the same numbers for every
    token; it goes on with the sums of this sum and others, up to the first that a module reads. What is told so holds
    for the samples of the pass: give two or more, of several tokens each.

    Args:
        model: the model, without gradients.
        groups: its groups.

    Yields:
        Path of a consumer -> its join; filled as the model runs. One is not among them whose output goes through a norm
        first (but a batch norm) or joins no sum, whose tokens are in another order there (windows), or if no other term
        is known before it runs, and the join is not late.
        Paths of consumers and producers, filled likewise: a ReLU reads what they write (behind a batch norm, if one
        reads it, and in the join, if there is one), and nothing else does.
    """
    search = _Search()
    with ExitStack() as stack:
        for path, module in model.named_modules():
            hook = search.reading_hook(path)
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True).remove)
            stack.callback(module.register_forward_hook(search.returning_hook(path)).remove)
        for each in (each for group, each in consumers_by_path(groups).values() if not group.residual.windowed):
            consumer = model.get_submodule(each.path)
            stack.callback(consumer.register_forward_pre_hook(search.starting_hook(each.path)).remove)
            hook = search.writing_hook(each.path, is_convolution(consumer))
            last = consumer if each.norm is None else model.get_submodule(each.norm)
            stack.callback(last.register_forward_hook(hook).remove)
        written = {each.path: each.norm for group in groups for each in (*group.producers, *group.consumers)}
        for path, norm in written.items():
            last = model.get_submodule(norm or path)
            stack.callback(last.register_forward_hook(search.ending_hook(path)).remove)
        stack.enter_context(search)
        yield search.joins, search.rectified


def _everywhere(models: Sequence[nn.Module], path: str) -> bool:
    return all(find_module(model, path) is not None for model in models)


def scale_of(term: Tensor, output: Tensor) -> Tensor | float | None:
    """What an output is multiplied by to give a term, the same for every token; `None` if it is not so."""
    term, output = (each.detach().flatten(0, -2) for each in (term, output))
    if torch.equal(term, output):
        return 1.0
    rounding = _ROUNDING * max(torch.finfo(each.dtype).eps for each in (term, output))
    term, output = term.double(), output.double()
    if (output - output[:1]).norm() <= _ALIKE * output.norm():
        return None
    squares = output.square().sum(0)
    scale = torch.where(squares > 0, (term * output).sum(0) / squares.clamp_min(torch.finfo(torch.double).tiny), 0)
    same = scale.any() and (term - output * scale).norm() <= rounding * term.norm()
    return scale.float().cpu() if same else None


_Terms = tuple[tuple[tuple[int, Place], ...], ...]
"""Terms of a sum; for each, the places where it is, with the times when it was there."""


@dataclass
class Written:
    """An output whose sum is looked for, with its channels last, and how many sums it was looked for in."""

    value: Tensor
    sums: int = 0

    def forms_of(self, term: Tensor) -> Iterator[tuple[bool, Tensor]]:
        """A tensor with the output's channels last, if it has as many numbers for each; and whether it is of maps."""
        if term.numel() == self.value.numel():
            if term.shape[-1] == self.value.shape[-1]:
                yield False, term
            if term.dim() > 2 and term.shape[1] == self.value.shape[-1]:
                yield True, as_tokens(term, is_map=True)


@dataclass
class _Known:
    """What is known of a tensor, as long as it is there and has not changed."""

    version: int
    views: list[ReferenceType[Tensor]] = field(default_factory=list)
    places: list[tuple[int, Place]] = field(default_factory=list)
    terms: _Terms = ()

    def is_of(self, tensor: Tensor) -> bool:
        return self.version == _version(tensor) and any(view() is not None for view in self.views)


class _Search(TorchDispatchMode):
    """Looks at every sum of a pass, and at what modules read and return."""

    def __init__(self) -> None:
        super().__init__()
        self.joins: dict[str, Join] = {}
        self.rectified: set[str] = set()
        self._ended: set[str] = set()
        self._ends: dict[str, Tensor] = {}
        self._outputs: dict[str, Written] = {}
        self._started: dict[str, int] = {}
        self._open: dict[str, Tensor] = {}  # sums that no module has read
        self._late: set[str] = set()  # joins of one sum, the other term of which is not known
        self._partial: set[str] = set()  # joins some terms of which are not known
        self._known: dict[tuple[int, int], _Known] = {}
        self._runs: Counter[str] = Counter()
        self._clock = count()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_sum = func in ADDS and all(map(is_state, args[:2])) and args[0].numel() == args[1].numel()
        unread = self._note_readers(func, args, kwargs)
        if not is_sum:
            return func(*args, **kwargs)
        one, other = args[:2]
        alpha = kwargs.get("alpha", 1)
        terms = (*self._terms_of(one), *(self._terms_of(other) if alpha == 1 else ()))
        found = self._joined(one, other, alpha)
        if alpha == 1:  # of maps alone: a transformer may have such sums in every layer, and each costs passes
            self._late |= {path for path in found & unread if self.joins[path].of_maps and not self.joins[path].terms}
        found |= self._continued(one, other, alpha)
        total = func(*args, **kwargs)
        known = self._remember(total)
        known.places, known.terms = [], terms
        self._open |= dict.fromkeys(found, total)  # held, so that no other tensor takes its place in memory
        self._ends |= dict.fromkeys(found - self._partial | found & self._late, total)
        return total

    def _note_readers(self, func, args: tuple, kwargs: Mapping[str, Any]) -> set[str]:
        """Note of what is written whether a ReLU reads it, and nothing else does.

        Returns:
            Paths of what writes something that this operation reads, and that none has read before.
        """
        read = {_identity(each) for each in tree_leaves((args, kwargs)) if is_state(each)}
        in_place = _RELUS.get(func)
        if in_place is None and func in _CAPPED and args[1] == 0:
            in_place = _CAPPED[func]
        ends = {path for path, end in self._ends.items() if _identity(end) in read}
        unread = ends - self.rectified
        for path in ends:
            if in_place is None or path in self.rectified:
                self.rectified.discard(path)
                del self._ends[path]
            else:
                self.rectified.add(path)
                if in_place:
                    del self._ends[path]
        return unread

    def _joined(self, one: Tensor, other: Tensor, alpha: float) -> set[str]:
        """Take this sum for the join of the outputs that are a term of it; return their paths."""
        found: set[str] = set()
        for path, output in list(self._outputs.items()):
            if not (any(output.forms_of(one)) and any(output.forms_of(other))):
                continue
            output.sums += 1
            for term, factor, beside, times in ((one, 1, other, alpha), (other, alpha, one, 1)):
                for of_maps, rows in output.forms_of(term):
                    if path not in found and (scale := scale_of(rows, output.value)) is not None:
                        found.add(path)
                        self._join(path, scale * factor, beside if times == 1 else None, of_maps)
            if path in found or output.sums == _SUMS:
                del self._outputs[path]
        return found

    def _join(self, path: str, scale: Tensor | float, beside: Tensor | None, of_maps: bool) -> None:
        plain = not isinstance(scale, Tensor) and scale == 1
        self.joins[path] = Join((), None if plain else torch.as_tensor(scale, dtype=torch.float32), of_maps)
        self._add_terms(path, beside)

    def _add_terms(self, path: str, beside: Tensor | None) -> None:
        """Add the other side of a sum to a join, as far as it is known where it was before the consumer started."""
        terms = () if beside is None else self._terms_of(beside)
        before = [tuple(place for time, place in places if time < self._started[path]) for places in terms]
        self.joins[path] = replace(self.joins[path], terms=(*self.joins[path].terms, *filter(None, before)))
        if not all(before) or not before:
            self._partial.add(path)

    def _continued(self, one: Tensor, other: Tensor, alpha: float) -> set[str]:
        """Add a term to the joins that this sum goes on with; return their paths."""
        sides = _identity(one), _identity(other)
        found = {path for path, total in self._open.items() if _identity(total) in sides}
        self._late -= found
        for path in found:
            goes_on_with = one if _identity(self._open[path]) == _identity(other) else other
            self._add_terms(path, goes_on_with if alpha == 1 else None)
        return found

    def _terms_of(self, tensor: Tensor) -> _Terms:
        known = self._known.get(_identity(tensor))
        if known is None or not known.is_of(tensor):
            return ()
        return (tuple(known.places),) if known.places else known.terms

    def _remember(self, tensor: Tensor) -> _Known:
        known = self._known.get(_identity(tensor))
        if known is None or not known.is_of(tensor):
            known = self._known[_identity(tensor)] = _Known(_version(tensor))
        known.views.append(ref(tensor))
        return known

    def _note(self, place: Place, value: Any) -> None:
        if is_state(value):
            self._remember(value).places.append((next(self._clock), place))

    def reading_hook(self, path: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self._runs[path] += 1
            given = [*enumerate(args), *kwargs.items()]
            read = {_identity(value) for _, value in given if is_state(value)}
            self._open = {path: total for path, total in self._open.items() if _identity(total) not in read}
            for argument, value in given:
                self._note(Place(path, argument), value)

        return hook

    def returning_hook(self, path: str):
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            self._note(Place(path), first_of(output))

        return hook

    def starting_hook(self, path: str):
        def hook(module: nn.Module, args: tuple) -> None:
            self._started.setdefault(path, next(self._clock))

        return hook

    def writing_hook(self, path: str, is_map: bool):
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            if path not in self.joins and is_state(output):
                self._outputs[path] = Written((as_tokens(output, is_map=True) if is_map else output).clone())

        return hook

    def ending_hook(self, path: str):
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            if path in self._ended:  # it runs several times
                self.rectified.discard(path)
                self._ends.pop(path, None)
            elif is_state(output):
                self._ends[path] = output
            self._ended.add(path)

        return hook

    def __exit__(self, *exception) -> None:
        super().__exit__(*exception)
        for path, join in list(self.joins.items()):  # of a module that runs several times, it is not known when
            once = [tuple(place for place in places if self._runs[place.path] == 1) for places in join.terms]
            self.joins[path] = replace(join, terms=tuple(filter(None, once)), is_late=path in self._late)
            if len(self.joins[path].terms) < len(join.terms):
                self.rectified.discard(path)
            if not self.joins[path].terms and path not in self._late:
                del self.joins[path]


def is_state(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1 and value.numel() > 0


def _identity(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
