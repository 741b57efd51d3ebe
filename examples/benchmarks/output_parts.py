"""How to weigh class and place of a query: segmenters and detectors of toy scenes, pruned by kinds of distance.

Trains a small EoMT (masks) or YOLOS (boxes) on scenes of discs and squares from a seed, prunes it with each way to
weigh the parts of its output, and prints what is left of its accuracy. Needs SciPy, for the losses of transformers.

    python examples/benchmarks/output_parts.py --places masks --flops 0.5 0.35
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import EomtConfig, EomtForUniversalSegmentation, YolosConfig, YolosForObjectDetection

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.comparing import queries

SIZE, LABELS, MOST = 32, 5, 3  # pixels of a side; background, discs and squares in two colours; objects of a scene
SHAPE = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_labels": LABELS, "patch_size": 4}


def scenes(count: int, seed: int) -> tuple[Tensor, list[list[tuple[int, Tensor]]]]:
    """Images of shape (count, 3, SIZE, SIZE), and of each its objects: class from 1 on, and visible mask."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.5 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    objects: list[list[tuple[int, Tensor]]] = []
    for image in images:
        found: list[tuple[int, Tensor]] = []
        for _ in range(int(torch.randint(1, MOST + 1, (), generator=generator))):
            radius, y, x = (int(torch.randint(*span, (), generator=generator)) for span in ((2, 8), (4, 28), (4, 28)))
            label = int(torch.randint(1, LABELS, (), generator=generator))
            round_ = (rows - y).square() + (columns - x).square() <= radius**2
            mask = round_ if label % 2 else ((rows - y).abs() <= radius) & ((columns - x).abs() <= radius)
            found = [(each, old & ~mask) for each, old in found]
            found.append((label, mask))
            image[:, mask] += 1.5 * torch.tensor([1.0, -1.0, 0.5] if label > 2 else [-1.0, 0.5, 1.0])[:, None]
        objects.append([(label, mask) for label, mask in found if mask.sum() > 4])
    return images, objects


def trained(model: nn.Module, targets: Callable[[list], dict], steps: int) -> nn.Module:
    """The model, trained on scenes that are new at every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for step in range(steps):
        images, objects = scenes(16, seed=1000 + step)
        loss = model(pixel_values=images, **targets(objects)).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def semantic_targets(objects: list[list[tuple[int, Tensor]]]) -> dict:
    """Masks of the classes in every scene, background included, and the classes."""
    masks, classes = [], []
    for scene in objects:
        labels = torch.zeros(SIZE, SIZE, dtype=torch.long)
        for label, mask in scene:
            labels[mask] = label
        classes.append(labels.unique())
        masks.append(torch.stack([labels == label for label in classes[-1]]).float())
    return {"mask_labels": masks, "class_labels": classes}


def box_targets(objects: list[list[tuple[int, Tensor]]]) -> dict:
    """Class and box of every object, as shares of the image."""
    labels = []
    for scene in objects:
        boxes = [_box(mask) for _, mask in scene]
        classes = torch.tensor([label for label, _ in scene], dtype=torch.long)
        labels.append({"class_labels": classes, "boxes": torch.stack(boxes) if boxes else torch.zeros(0, 4)})
    return {"labels": labels}


def _box(mask: Tensor) -> Tensor:
    spans = [mask.any(dim).nonzero().flatten() for dim in (0, 1)]  # columns, rows
    ends = [(int(span[0]), int(span[-1]) + 1) for span in spans]
    return torch.tensor([(low + high) / 2 for low, high in ends] + [high - low for low, high in ends]) / SIZE


@torch.no_grad()
def mean_iou(model: nn.Module, images: Tensor, objects: list) -> float:
    """Mean over classes of intersection over union, of the map that classes times masks make."""
    shared, union = torch.zeros(LABELS), torch.zeros(LABELS)
    for image, classes, masks in zip(images, *semantic_targets(objects).values().__reversed__(), strict=True):
        outputs = model(pixel_values=image[None])
        shares = outputs.class_queries_logits[0].softmax(-1)[:, :-1]
        large = nn.functional.interpolate(outputs.masks_queries_logits, size=(SIZE, SIZE), mode="bilinear")[0].sigmoid()
        found = torch.einsum("qc,qhw->chw", shares, large).argmax(0)
        truth = (masks.bool() * classes[:, None, None]).sum(0)
        for label in range(LABELS):
            shared[label] += ((found == label) & (truth == label)).sum()
            union[label] += ((found == label) | (truth == label)).sum()
    return float((shared / union).mean())


@torch.no_grad()
def detection_score(model: nn.Module, images: Tensor, objects: list) -> float:
    """F1 of detections above 0.5: right if class and half of the box are, each object once."""
    right = made = there = 0
    for image, target in zip(images, box_targets(objects)["labels"], strict=True):
        outputs = model(pixel_values=image[None])
        scores, labels = outputs.logits[0].softmax(-1)[:, :-1].max(-1)
        order = [query for query in scores.argsort(descending=True).tolist() if scores[query] > 0.5]
        left = list(range(len(target["boxes"])))
        made, there = made + len(order), there + len(left)
        for query in order:
            boxes = outputs.pred_boxes[0, query].expand(len(left), 4)
            overlaps = queries._overlap(boxes, target["boxes"][left])
            fits = [
                (float(overlap), place)
                for overlap, place in zip(overlaps, left, strict=True)
                if overlap > 0.5 and target["class_labels"][place] == labels[query]
            ]
            if fits:
                left.remove(max(fits)[1])
                right += 1
    return 2 * right / max(made + there, 1)


@contextmanager
def weighed(way: str) -> Iterator[None]:
    """Let the parts of an output be weighed in another way."""
    area, sides, objects = queries._area, queries._sides, queries.QueryKind.objects
    if way == "mean":  # over the compared pixels; boxes as shares of the image
        queries._area = lambda logits: logits.new_full((len(logits),), logits.shape[1])
        queries._sides = torch.ones_like
    elif way == "sum":
        queries._area = lambda logits: logits.new_ones(len(logits))
    elif way == "class alone":
        queries.QueryKind.objects = lambda kind, logits: logits.new_zeros(len(logits))
    elif way == "every query":
        queries.QueryKind.objects = lambda kind, logits: logits.new_ones(len(logits))
    try:
        yield
    finally:
        queries._area, queries._sides, queries.QueryKind.objects = area, sides, objects


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--places", choices=("masks", "boxes"), default="masks")
    parser.add_argument("--flops", type=float, nargs="+", default=[0.5, 0.35])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.places == "masks":
        settings = {"mlp_ratio": 2, "num_upscale_blocks": 1, "num_blocks": 1, "num_queries": 12}
        settings |= {"drop_path_rate": 0.0, "train_num_points": 256}
        model = EomtForUniversalSegmentation(EomtConfig(image_size=SIZE, **SHAPE, **settings))
        targets, measure = semantic_targets, mean_iou
    else:
        settings = {"intermediate_size": 128, "num_detection_tokens": 12, "use_mid_position_embeddings": False}
        model = YolosForObjectDetection(YolosConfig(image_size=[SIZE, SIZE], **SHAPE, **settings))
        targets, measure = box_targets, detection_score
    trained(model, targets, arguments.steps)
    test = scenes(300, seed=7)
    print(f"dense: {measure(model, *test):.3f}", flush=True)
    pruner = OptinPruner(model)
    ways = ("by size", "mean", "sum", "every query", "class alone")
    for flops in arguments.flops:
        for way in ways:
            left, agreements = [], []
            for seed in range(arguments.seeds):
                data = [{"pixel_values": image} for image in scenes(128, seed=100 + seed)[0]]
                with weighed(way):
                    pruned = pruner.prune(data, OptinConfig(flops=flops, seed=seed))
                left.append(measure(pruned, *test))
                agreements.append(pruner.report.divergence["agreement"] or 0.0)
            numbers = ", ".join(f"{each:.3f}" for each in left)
            mean, agreement = sum(left) / len(left), sum(agreements) / len(agreements)
            print(f"flops {flops}, {way}: {mean:.3f} ({numbers}), agreement {agreement:.3f}", flush=True)


if __name__ == "__main__":
    main()
