"""Tiny folders of annotated images, and tiny models with heads for them."""

import json

import numpy as np
import torch
import transformers as tr
from PIL import Image
from tiny import perturbed

COLORS = ["red", "green", "blue"]
SIZES = [(20, 24), (16, 16), (24, 20), (20, 24), (16, 16), (28, 20)]  # height and width, not all alike


def segmenter(**changes):
    """A tiny SegFormer that knows three colours."""
    config = {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "hidden_sizes": [16, 32],
        "patch_sizes": [3, 3],
        "strides": [2, 2],
        "num_attention_heads": [2, 4],
        "mlp_ratios": [2, 2],
        "decoder_hidden_size": 16,
        "drop_path_rate": 0.0,
        "id2label": dict(enumerate(COLORS)),
        "label2id": {name: index for index, name in enumerate(COLORS)},
    }
    torch.manual_seed(0)
    model = perturbed(tr.SegformerForSemanticSegmentation(tr.SegformerConfig(**{**config, **changes})))
    with torch.no_grad():  # or one class would win everywhere
        model.decode_head.classifier.weight.mul_(50)
        model.decode_head.classifier.bias.zero_()
    return model


def segmentation_processor(**changes):
    """Its image processor, at 32 pixels."""
    return tr.SegformerImageProcessorPil(size={"height": 32, "width": 32}, **changes)


def mask_classifier():
    """A tiny Mask2Former on a Swin, that knows three colours; and its image processor."""
    backbone = tr.SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[2, 2, 4, 4],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    sizes = dict.fromkeys(["feature_size", "mask_feature_size", "hidden_dim", "dim_feedforward"], 32)
    config = tr.Mask2FormerConfig(
        backbone_config=backbone,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        num_queries=5,
        id2label=dict(enumerate(COLORS)),
        label2id={name: index for index, name in enumerate(COLORS)},
        **sizes,
    )
    torch.manual_seed(0)
    processor = tr.Mask2FormerImageProcessorPil(size={"height": 32, "width": 32})
    return perturbed(tr.Mask2FormerForUniversalSegmentation(config)), processor


def detector():
    """A tiny YOLOS that knows three colours."""
    config = tr.YolosConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=6,
        id2label=dict(enumerate(COLORS)),
        label2id={name: index for index, name in enumerate(COLORS)},
    )
    torch.manual_seed(0)
    return perturbed(tr.YolosForObjectDetection(config))


def detection_processor():
    """Its image processor, at 32 pixels."""
    return tr.YolosImageProcessorPil(size={"height": 32, "width": 32}, do_pad=False)


def pixels(seed=0):
    """Random images of several sizes."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def maps(seed=1, classes=3):
    """A class for each pixel of these, and some that do not count."""
    generator = np.random.default_rng(seed)
    found = [generator.integers(0, classes, size).astype(np.uint8) for size in SIZES]
    for each in found:
        each[:2, :3] = 255
    return found


def write_scenes(folder, images=None, annotations=None, split=None):
    """`images/` and `annotations/` with the same stems."""
    pairs = zip(images or pixels(), annotations or maps(), strict=True)
    for place, (image, annotation) in enumerate(pairs):
        for name, value, suffix in (("images", image, "jpg"), ("annotations", annotation, "png")):
            file = folder / (split or "") / name / f"scene-{place}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(value).save(file)
    return folder


def write_coco(folder, name="annotations.json", **changes):
    """Images, and a file in COCO's form with two boxes in each."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for place, image in enumerate(pixels()):
        Image.fromarray(image).save(folder / "images" / f"{place}.png")
        images.append(
            {"id": 10 + place, "file_name": f"{place}.png", "height": SIZES[place][0], "width": SIZES[place][1]}
        )
        for color in range(2):
            box = [1 + color, 2, 8 + place, 9]
            category = 7 + (place + color) % 3
            annotations.append(
                {"id": len(annotations) + 1, "image_id": 10 + place, "category_id": category, "bbox": box}
            )
    categories = [{"id": 7 + place, "name": name} for place, name in enumerate(reversed(COLORS))]
    content = {"images": images, "annotations": annotations, "categories": categories, **changes}
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return folder
