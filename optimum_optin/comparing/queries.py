"""What queries say (DETR and its kin): a class for each, and where the object is, as a mask or as a box.

A row is a query: its class logits and, after them, its mask's logits at the compared pixels, or its box. The pruned
model's query is compared with the dense model's of the same index. Where an object is matters as far as there is one,
as in the chain rule of the KL divergence,

    KL(class, place) = KL(class) + sum over classes of p(class) KL(place, given the class),

in which "no object" has no place: so the second term is that of the place, times the dense model's probability p of an
object. A place's distance is relative to the object's size, so that neither small objects are drowned by large ones nor
classes by thousands of pixels: masks by the pixels that the object covers, boxes by its height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..running.memory import at_least_single
from .losses import BINARY, CATEGORICAL, class_divergences, switch_divergences

_LEAST_SIDE = 0.01  # of a box, as a share of the image: what is smaller is compared as if it were as large
_SEEN = 0.5  # probability from which a class without rivals counts as seen
_OVERLAP = 0.5  # intersection over union from which two boxes are the same


class Place(Protocol):
    """What must be known of a way to say where an object is; tensors are (rows, numbers), float32 at least."""

    def distances(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """The distance of each row, relative to the object's size, shape (rows,)."""

    def shaped(self, noise: Tensor, output: Tensor, temperature: float) -> Tensor:
        """Noise, multiplied by a root of the curvature that the distances have at these outputs."""

    def sums(self, kind: QueryKind, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """How much was compared, and how much of that agrees; whole rows, float64."""


@dataclass(frozen=True)
class QueryKind:
    """The kind of an output of queries, see `OutputKind`: shape (samples * queries, classes + numbers of the place).

    Args:
        queries: how many queries a sample has.
        classes: how many class logits a query has.
        exclusive: whether these are a softmax, whose last class is "no object"; otherwise they are sigmoids.
        place: how queries say where the object is.
    """

    queries: int
    classes: int
    exclusive: bool
    place: Place

    def distance(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        (classes, places), (sure, true) = (self.split(at_least_single(each)) for each in (student, teacher))
        divergences = class_divergences if self.exclusive else switch_divergences
        rows = divergences(classes, sure, temperature) * temperature**2
        return (rows + self.objects(sure) * self.place.distances(places, true, temperature)).mean()

    def shaped(self, noise: Tensor, output: Tensor, temperature: float) -> Tensor:
        (for_classes, for_places), (classes, places) = self.split(noise), self.split(output)
        kind = CATEGORICAL if self.exclusive else BINARY
        placed = self.objects(classes).sqrt()[:, None] * self.place.shaped(for_places, places, temperature)
        return torch.cat([kind.shaped(for_classes, classes, temperature), placed], dim=1)

    def sums(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        return self.place.sums(self, at_least_single(student), at_least_single(teacher))

    def agreement(self, rows: float, sums: Sequence[Tensor]) -> float | None:
        compared, agreeing = map(float, sums)
        return agreeing / compared if compared else None

    def split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits, and the numbers of the place."""
        return output[:, : self.classes], output[:, self.classes :]

    def objects(self, logits: Tensor) -> Tensor:
        """The probability that a query sees an object, by its class logits, shape (rows,)."""
        return 1 - logits.softmax(-1)[:, -1] if self.exclusive else logits.sigmoid().amax(-1)

    def seen(self, logits: Tensor) -> Tensor:
        """The class that each query sees, shape (rows,); -1 for none."""
        if self.exclusive:
            chosen = logits.argmax(-1)
            return chosen.where(chosen < self.classes - 1, -1)
        return logits.argmax(-1).where(logits.sigmoid().amax(-1) > _SEEN, -1)


class _Masks:
    """Logits of a mask at the compared pixels; models agree by the share of pixels with the same class."""

    def distances(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return switch_divergences(student, teacher, temperature) * temperature**2 / _area(teacher)

    def shaped(self, noise: Tensor, output: Tensor, temperature: float) -> Tensor:
        return BINARY.shaped(noise, output, temperature) / _area(output).sqrt()[:, None]

    def sums(self, kind: QueryKind, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        agreeing = _classes_of_pixels(kind, student) == _classes_of_pixels(kind, teacher)
        return agreeing.new_tensor(agreeing.numel(), dtype=torch.float64), agreeing.sum().double()


class _Boxes:
    """Centre, width and height of a box as shares of the image's; models agree by the share of equal detections.

    These are the queries in which both models see the same class and boxes that overlap by half, of those in which one
    of the models sees anything: most queries see nothing, and would agree whatever is pruned.
    """

    def distances(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return ((student - teacher) / _sides(teacher)).square().sum(-1)

    def shaped(self, noise: Tensor, output: Tensor, temperature: float) -> Tensor:
        return noise / _sides(output)

    def sums(self, kind: QueryKind, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        (classes, boxes), (sure, true) = kind.split(student), kind.split(teacher)
        found, expected = kind.seen(classes), kind.seen(sure)
        anything = (found >= 0) | (expected >= 0)
        same = anything & (found == expected) & (_overlap(boxes, true) > _OVERLAP)
        return anything.sum().double(), same.sum().double()


MASKS, BOXES = _Masks(), _Boxes()


def _area(logits: Tensor) -> Tensor:
    """How many of the compared pixels each mask covers, at least one, shape (rows,)."""
    return logits.sigmoid().sum(-1).clamp_min(1)


def _classes_of_pixels(kind: QueryKind, output: Tensor) -> Tensor:
    """The class of every compared pixel, shape (samples, pixels): that of the largest sum of class times mask."""
    classes, masks = kind.split(output)
    shares = classes.softmax(-1)[:, :-1] if kind.exclusive else classes.sigmoid()
    shares, masks = (each.view(-1, kind.queries, each.shape[1]) for each in (shares, masks.sigmoid()))
    return (shares.transpose(1, 2) @ masks).argmax(1)  # (samples, classes, pixels) -> (samples, pixels)


def _sides(boxes: Tensor) -> Tensor:
    """Width and height of each box, twice, shape (rows, 4)."""
    return boxes[:, 2:].clamp_min(_LEAST_SIDE).repeat(1, 2)


def _overlap(some: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes, row by row."""
    lows = torch.maximum(*(each[:, :2] - each[:, 2:] / 2 for each in (some, others)))
    highs = torch.minimum(*(each[:, :2] + each[:, 2:] / 2 for each in (some, others)))
    sides = highs - lows
    shared = sides.clamp_min(0).prod(-1)
    union = some[:, 2:].prod(-1) + others[:, 2:].prod(-1) - shared
    return shared / union.clamp_min(1e-12)
