"""Confusion of classes, pixel by pixel and image by image: mean IoU, pixel accuracy, and their standard errors.

Sums are kept, not maps: memory does not grow with the pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Confusion:
    """Counts of predicted against true classes, added image by image.

    Args:
        classes: how many classes there are.
        ignored: the class of pixels that do not count.
    """

    def __init__(self, classes: int, ignored: int = 255):
        self.classes = classes
        self.ignored = ignored
        self.total = torch.zeros(classes, classes, dtype=torch.int64)
        self._images: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, predicted: Tensor, true: Tensor) -> None:
        """Count one image; returns nothing.

        Args:
            predicted: the class of each pixel, shape (height, width).
            true: the same of the annotation, in which pixels may be ignored.

        Raises:
            ValueError: maps of different shapes, or a class that does not exist.
        """
        if predicted.shape != true.shape:
            raise ValueError(f"maps must have one shape, got {tuple(predicted.shape)} and {tuple(true.shape)}.")
        counted = true != self.ignored
        pairs = predicted[counted].long(), true[counted].long()
        for each in pairs:
            if each.numel() and not 0 <= int(each.min()) <= int(each.max()) < self.classes:
                raise ValueError(
                    f"classes must be 0 to {self.classes - 1}, got {int(each.min())} to {int(each.max())}."
                )
        counts = torch.bincount(pairs[1] * self.classes + pairs[0], minlength=self.classes**2)
        counts = counts.view(self.classes, self.classes)  # (true, predicted)
        self.total += counts
        right = counts.diagonal()
        self._images.append((right.clone(), counts.sum(0) + counts.sum(1) - right, counts.sum()))

    @property
    def pixels(self) -> int:
        """How many pixels count."""
        return int(self.total.sum())

    def class_iou(self) -> Tensor:
        """Intersection over union of each class, shape (classes,); NaN of one that is nowhere, in neither map."""
        right = self.total.diagonal().double()
        return right / (self.total.sum(0) + self.total.sum(1) - right)

    def mean_iou(self) -> tuple[float, float | None]:
        """Mean IoU of the classes that are somewhere, and its standard error over images.

        By the delta method: with intersections I_c and unions U_c summed over images, image i moves the mean by the
        mean over classes of (I_ic - IoU_c U_ic) / U_c. `None` with a single image.
        """
        iou, there = self.class_iou(), self._unions() > 0
        value = float(iou[there].mean())
        right, unions, _ = (torch.stack(each).double() for each in zip(*self._images, strict=True))
        moves = ((right - iou * unions) / self._unions())[:, there].mean(1)
        return value, _error(moves)

    def pixel_accuracy(self) -> tuple[float, float | None]:
        """Share of pixels whose class is right, and its standard error over images, by the delta method as well."""
        right, _, pixels = (torch.stack(each).double() for each in zip(*self._images, strict=True))
        value = float(right.sum() / pixels.sum())
        return value, _error((right.sum(1) - value * pixels) / pixels.sum())

    def _unions(self) -> Tensor:
        return (self.total.sum(0) + self.total.sum(1) - self.total.diagonal()).double()


def _error(moves: Tensor) -> float | None:
    """Standard error of a sum of independent terms with mean 0, one for each image; `None` if there is one image."""
    count = len(moves)
    return float((moves.square().sum() * count / (count - 1)).sqrt()) if count > 1 else None
