"""How well a segmenter of fashion scenes does: mean IoU and pixel accuracy, at the scenes' own size."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from fashion_scenes import CLASSES, Scene
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel


@dataclass(frozen=True)
class SceneAccuracy:
    """What was measured on some scenes, and what naming every pixel background would give on them."""

    scenes: int
    mean_iou: float
    pixel_accuracy: float
    background_mean_iou: float
    background_pixel_accuracy: float

    def __str__(self) -> str:
        return (
            f"{self.scenes} test scenes: mean IoU {self.mean_iou:.4f}, pixel accuracy {self.pixel_accuracy:.4f} (all "
            f"background: {self.background_mean_iou:.4f} and {self.background_pixel_accuracy:.4f})"
        )


@torch.no_grad()
def scene_accuracy(
    model: PreTrainedModel, processor: BaseImageProcessor, scenes: Iterable[Scene], batch_size: int = 20
) -> SceneAccuracy:
    """Count pixels of all scenes, in float32, and measure; masks are what the processor makes of the output."""
    model.eval()
    counts, done = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.long), 0
    scenes = list(scenes)
    for start in range(0, len(scenes), batch_size):
        part = scenes[start : start + batch_size]
        inputs = processor(images=[scene.image for scene in part], return_tensors="pt")
        sizes = [scene.semantic.shape for scene in part]
        found = processor.post_process_semantic_segmentation(model(inputs["pixel_values"]), sizes)
        counts += confusion(torch.stack(found), torch.stack([torch.from_numpy(scene.semantic) for scene in part]))
        done += len(part)
    background = torch.zeros_like(counts)
    background[:, 0] = counts.sum(1)
    return SceneAccuracy(done, mean_iou(counts), accuracy(counts), mean_iou(background), accuracy(background))


def confusion(found: Tensor, true: Tensor) -> Tensor:
    """Pixels by true class (rows) and found class, of two tensors of one shape."""
    count = len(CLASSES)
    return torch.bincount(true.long().flatten() * count + found.long().flatten(), minlength=count**2).view(count, count)


def mean_iou(counts: Tensor) -> float:
    """Mean over the classes that there are of pixels that are both, by pixels that are either."""
    both = counts.diagonal().double()
    either = counts.sum(0) + counts.sum(1) - both
    there = counts.sum(1) > 0
    return float((both / either)[there].mean())


def accuracy(counts: Tensor) -> float:
    """Share of pixels whose class is right."""
    return float(counts.diagonal().sum() / counts.sum())
