"""Segmenters: mean IoU against a loop over pixels, images one by one, and annotations that do not fit."""

import evaluate
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from image_tasks_data import (
    COLORS,
    SIZES,
    maps,
    mask_classifier,
    pixels,
    segmentation_processor,
    segmenter,
    write_scenes,
)
from PIL import Image as Pillow
from tiny import tiny_model
from torch import nn
from transformers import BeitImageProcessorPil, Mask2FormerImageProcessorPil

from optimum_optin.evaluation import mean_iou_metric
from optimum_optin.evaluation.comparison import evaluate_model
from optimum_optin.evaluation.mean_iou_metric import MeanIou
from optimum_optin.image_tasks.confusion import Confusion
from optimum_optin.image_tasks.pictures import palette
from optimum_optin.image_tasks.segmentation import semantic_maps

TASK = "semantic-segmentation"


def _counted(predicted, true, classes, ignored=255):
    """Intersections and unions of each class, by a loop over pixels."""
    both, either = [0] * classes, [0] * classes
    for one, other in zip(np.ravel(predicted).tolist(), np.ravel(true).tolist(), strict=True):
        if other == ignored:
            continue
        for index in {one, other}:
            either[index] += 1
        both[one] += one == other
    return both, either


def _mean_iou(pairs, classes):
    counts = [_counted(*pair, classes) for pair in pairs]
    sums = [[sum(each[side][index] for each in counts) for index in range(classes)] for side in range(2)]
    ious = [both / either for both, either in zip(*sums, strict=True) if either]
    return sum(ious) / len(ious)


def _pairs(count=12, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        true = generator.integers(0, classes - 1, (9, 7))  # one class is nowhere but in a prediction
        predicted = np.where(generator.random((9, 7)) < 0.6, true, generator.integers(0, classes, (9, 7)))
        true[0, :3] = 255
        pairs.append((predicted, true))
    return pairs


def _confusion(pairs, classes):
    confusion = Confusion(classes)
    for predicted, true in pairs:
        confusion.add(torch.from_numpy(predicted), torch.from_numpy(true))
    return confusion


def test_the_counts_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    pairs = _pairs()
    confusion = _confusion(pairs, 4)
    predicted, true = (np.concatenate([each[side].ravel() for each in pairs]) for side in range(2))
    counted = true[true != 255], predicted[true != 255]
    assert np.array_equal(confusion.total, sklearn.confusion_matrix(*counted, labels=range(4)))
    assert confusion.mean_iou()[0] == pytest.approx(sklearn.jaccard_score(*counted, average="macro"))


def test_mean_iou_is_that_of_a_loop():
    pairs = _pairs()
    confusion = _confusion(pairs, 4)
    predicted, true = (np.concatenate([each[side].ravel() for each in pairs]) for side in range(2))
    there = true != 255
    assert confusion.mean_iou()[0] == pytest.approx(_mean_iou(pairs, 4))
    assert confusion.pixel_accuracy()[0] == pytest.approx((true[there] == predicted[there]).mean())
    assert _confusion(pairs, 6).mean_iou()[0] == confusion.mean_iou()[0], "classes that are nowhere do not count"
    assert _confusion(pairs, 6).class_iou()[4:].isnan().all()


def test_its_standard_errors_are_nearly_a_jackknifes():
    pairs = _pairs(60)
    confusion = _confusion(pairs, 4)
    for metric in ("mean_iou", "pixel_accuracy"):
        left = [getattr(_confusion(pairs[:place] + pairs[place + 1 :], 4), metric)()[0] for place in range(60)]
        expected = np.sqrt(59 / 60 * np.square(np.array(left) - np.mean(left)).sum())
        assert getattr(confusion, metric)()[1] == pytest.approx(expected, rel=0.03)
    assert _confusion(pairs[:1], 4).mean_iou()[1] is None


def _one_by_one(model, processor, annotations):
    """Each image alone, its logits resized to its own size."""
    found = []
    for image, true in zip(pixels(), annotations, strict=True):
        inputs = processor(images=Pillow.fromarray(image), return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits
        resized = nn.functional.interpolate(logits, size=true.shape, mode="bilinear", align_corners=False)
        found.append((resized[0].argmax(0).numpy(), true))
    return found


def _as_png(folder):
    """Scenes whose images are kept as they are."""
    write_scenes(folder)
    for place, image in enumerate(pixels()):
        (folder / "images" / f"scene-{place}.jpg").unlink()
        Pillow.fromarray(image).save(folder / "images" / f"scene-{place}.png")
    return folder


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_folder_is_measured_as_a_loop_does(tmp_path, batch_size):
    model, processor = segmenter(), segmentation_processor()
    _as_png(tmp_path / "scenes")
    found = evaluate_model(model, processor, TASK, data_dir=tmp_path / "scenes", batch_size=batch_size)
    pairs = _one_by_one(model, processor, maps())
    assert {name: found[name] for name in ("task", "dataset", "split", "samples")} == {
        "task": TASK,
        "dataset": "scenes",
        "split": "all",
        "samples": len(SIZES),
    }
    assert found["metrics"]["mean_iou"]["value"] == pytest.approx(_mean_iou(pairs, 3))
    right = sum(int((one == other).sum()) for one, other in pairs)
    counted = sum(int((other != 255).sum()) for _, other in pairs)
    assert found["metrics"]["pixel_accuracy"]["value"] == pytest.approx(right / counted)
    both, either = (np.sum([_counted(*pair, 3)[side] for pair in pairs], axis=0) for side in range(2))
    assert found["classes"] == pytest.approx(dict(zip(COLORS, both / either, strict=True)))
    assert min(found["classes"].values()) > 0.05, "or the test shows little"


@pytest.mark.parametrize("batch_size", [1, 4])
def test_classifiers_of_masks_are_measured_by_what_their_processor_makes_of_them(tmp_path, batch_size):
    model, processor = mask_classifier()
    found = evaluate_model(model, processor, TASK, data_dir=_as_png(tmp_path / "scenes"), batch_size=batch_size)
    pairs = []
    for image, true in zip(pixels(), maps(), strict=True):
        with torch.no_grad():
            outputs = model(**processor(images=Pillow.fromarray(image), return_tensors="pt"))
        (predicted,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[true.shape])
        pairs.append((predicted.numpy(), true))
    assert found["metrics"]["mean_iou"]["value"] == pytest.approx(_mean_iou(pairs, 3), abs=1e-3)


def test_labels_that_count_from_one_are_reduced(tmp_path):
    model = segmenter()
    _as_png(tmp_path / "scenes")
    expected = evaluate_model(model, segmentation_processor(), TASK, data_dir=tmp_path / "scenes")
    for place, annotation in enumerate(maps()):
        shifted = np.where(annotation == 255, 0, annotation + 1).astype(np.uint8)
        Pillow.fromarray(shifted).save(tmp_path / "scenes" / "annotations" / f"scene-{place}.png")
    by_option = evaluate_model(model, segmentation_processor(), TASK, data_dir=tmp_path / "scenes", reduce_labels=True)
    by_processor = evaluate_model(
        model, segmentation_processor(do_reduce_labels=True), TASK, data_dir=tmp_path / "scenes"
    )
    assert by_option == by_processor == expected


def test_a_data_set_is_measured_like_its_folder(tmp_path):
    model, processor = segmenter(), segmentation_processor()
    folder = _as_png(tmp_path / "scenes")
    expected = evaluate_model(model, processor, TASK, data_dir=folder)["metrics"]
    files = {
        name: [str(folder / kind / f"scene-{place}.png") for place in range(len(SIZES))]
        for name, kind in (("image", "images"), ("annotation", "annotations"))
    }
    data = Dataset.from_dict(files, features=Features({"image": Image(), "annotation": Image()}))
    assert evaluate_model(model, processor, TASK, data=data)["metrics"] == expected
    data.save_to_disk(str(tmp_path / "saved"))
    assert evaluate_model(model, processor, TASK, data_dir=tmp_path / "saved")["metrics"] == expected
    data.to_parquet(str(tmp_path / "parquet" / "validation.parquet"))
    found = evaluate_model(model, processor, TASK, data_dir=tmp_path / "parquet")
    assert (found["metrics"], found["split"]) == (expected, "validation")


@pytest.mark.parametrize("form", ["inside", "below"])
def test_splits_are_folders(tmp_path, form):
    for split in ("train", "validation"):
        write_scenes(tmp_path / "one", split=split)
    if form == "below":
        for name in ("images", "annotations"):
            for split in ("train", "validation"):
                (tmp_path / "two" / name).mkdir(parents=True, exist_ok=True)
                (tmp_path / "one" / split / name).rename(tmp_path / "two" / name / split)
    folder = tmp_path / ("two" if form == "below" else "one")
    model, processor = segmenter(), segmentation_processor()
    assert evaluate_model(model, processor, TASK, data_dir=folder, max_samples=2)["split"] == "validation"
    assert evaluate_model(model, processor, TASK, data_dir=folder, split="train", max_samples=2)["split"] == "train"
    with pytest.raises(ValueError, match="no split 'test'" if form == "below" else "no split 'test'|has no split"):
        evaluate_model(model, processor, TASK, data_dir=folder, split="test")


def test_a_processor_without_maps_leaves_them_to_the_logits():
    logits = torch.randn(2, 3, 4, 4)
    found = semantic_maps({"logits": logits}, [(8, 8), (6, 4)], object())
    for each, logit, size in zip(found, logits, [(8, 8), (6, 4)], strict=True):
        expected = nn.functional.interpolate(logit[None], size=size, mode="bilinear", align_corners=False)
        assert torch.equal(each, expected[0].argmax(0))
    with pytest.raises(ValueError, match="object has no post_process_semantic_segmentation, and the model no logits"):
        semantic_maps({"logits": torch.randn(2, 3)}, [(8, 8)] * 2, object())


class _Filled:
    """What a processor that fills images up makes of a model that sees each pixel's class as it is."""

    def post_process_semantic_segmentation(self, outputs, target_sizes):
        found = []
        for each, size in zip(outputs.logits, target_sizes, strict=True):
            found.append(nn.functional.interpolate(each[None], size=tuple(size), mode="nearest")[0].argmax(0))
        return found


def test_what_a_processor_fills_up_is_no_part_of_the_map(tmp_path, monkeypatch):
    """A model that repeats the red channel as a class must be right everywhere, whatever stands beside the image."""
    image = np.zeros((20, 12, 3), np.uint8)
    image[..., 0] = np.arange(240).reshape(20, 12) % 3 * 100
    write_scenes(tmp_path / "s", [image] * 2, [image[..., 0] // 100] * 2)
    for place in range(2):
        Pillow.fromarray(image).save(tmp_path / "s" / "images" / f"scene-{place}.png")
        (tmp_path / "s" / "images" / f"scene-{place}.jpg").unlink()
    model = segmenter()
    monkeypatch.setattr(
        type(model),
        "forward",
        lambda self, pixel_values, **_: {
            "logits": torch.stack([-(pixel_values[:, 0] - 100 * index).abs() for index in range(3)], dim=1)
        },
    )
    processor = Mask2FormerImageProcessorPil(
        do_resize=False, do_rescale=False, do_normalize=False, pad_size={"height": 32, "width": 32}
    )
    inputs = processor(images=[Pillow.fromarray(image)], return_tensors="pt")
    assert inputs["pixel_values"].shape[-2:] == (32, 32) and inputs["pixel_mask"].sum() == 240
    monkeypatch.setattr(
        type(processor), "post_process_semantic_segmentation", _Filled.post_process_semantic_segmentation
    )
    assert evaluate_model(model, processor, TASK, data_dir=tmp_path / "s")["metrics"]["mean_iou"]["value"] == 1


def test_the_metric_is_one_of_evaluate():
    pairs = _pairs()
    predictions, references = ([each[side].tolist() for each in pairs] for side in range(2))
    options = {"num_labels": 4, "ignore_index": 255}
    for metric in (MeanIou(), evaluate.load(mean_iou_metric.__file__)):
        found = metric.compute(predictions=predictions, references=references, **options)
        assert found["mean_iou"] == pytest.approx(_mean_iou(pairs, 4))
        assert set(found) == {"mean_iou", "pixel_accuracy", "per_category_iou"}


def test_the_palette_is_that_of_pascal_voc():
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128)}
    assert {index: tuple(map(int, palette()[index])) for index in known} == known
    assert len({tuple(color) for color in palette().tolist()}) == 256


# Bad input


def _rgb(folder):
    Pillow.new("RGB", SIZES[2][::-1]).save(folder / "annotations" / "scene-2.png")


def _missing(folder):
    (folder / "annotations" / "scene-3.png").unlink()


def _beyond(folder):
    annotation = maps()[4]
    annotation[5, 5] = 7
    Pillow.fromarray(annotation).save(folder / "annotations" / "scene-4.png")


def _small(folder):
    Pillow.fromarray(maps()[1][:8]).save(folder / "annotations" / "scene-1.png")


def _ignored(folder):
    for place, size in enumerate(SIZES):
        Pillow.new("L", size[::-1], 255).save(folder / "annotations" / f"scene-{place}.png")


def _no_annotations(folder):
    (folder / "annotations").rename(folder / "others")


def _damaged(folder):
    (folder / "annotations" / "scene-0.png").write_bytes(b"no image")


def _damaged_image(folder):
    (folder / "images" / "scene-0.jpg").write_bytes(b"no image")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_rgb, r"scene-2\.png is an image of colours \(RGB\): an annotation holds the number of a class"),
        (_missing, r"scene-3\.jpg has no annotation: .*annotations/scene-3\.png is missing"),
        (_beyond, r"scene-4\.png has the class 7, and the model 3 classes, 0 to 2: set ignore_index="),
        (_small, r"scene-1\.png is 16 x 8 pixels, and its image 16 x 16"),
        (_ignored, r"no pixel of 6 annotations of scenes counts: all have ignore_index=255"),
        (_no_annotations, r"images has no annotations: .*annotations is missing"),
        (_damaged, r"scene-0\.png cannot be read as an annotation"),
        (_damaged_image, r"scene-0\.jpg cannot be read as an image"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_annotations_that_do_not_fit_are_refused_before_a_forward_pass(tmp_path, spoil, message):
    model = segmenter()
    model.register_forward_pre_hook(lambda *_: pytest.fail("a forward pass before the input was refused"))
    spoil(write_scenes(tmp_path / "scenes"))
    with pytest.raises(ValueError, match=message):
        evaluate_model(model, segmentation_processor(), TASK, data_dir=tmp_path / "scenes")


def test_what_counts_from_zero_is_no_annotation_from_one(tmp_path):
    for place, size in enumerate(SIZES):
        (tmp_path / "s" / "annotations").mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / "images").mkdir(parents=True, exist_ok=True)
        Pillow.new("L", size[::-1], 0).save(tmp_path / "s" / "annotations" / f"{place}.png")
        Pillow.new("RGB", size[::-1]).save(tmp_path / "s" / "images" / f"{place}.png")
    with pytest.raises(ValueError, match="counts: all have ignore_index=255, or 0 with reduce_labels=True"):
        evaluate_model(segmenter(), segmentation_processor(), TASK, data_dir=tmp_path / "s", reduce_labels=True)


@pytest.mark.parametrize(
    ("make", "processor", "message"),
    [
        (lambda: tiny_model("vit"), True, "needs a model with such a head .*got ViTForImageClassification"),
        (segmenter, False, "needs the model's image processor: pass it as processor="),
    ],
    ids=["a classifier", "no processor"],
)
def test_models_that_do_not_fit_are_refused(tmp_path, make, processor, message):
    write_scenes(tmp_path / "scenes")
    with pytest.raises(ValueError, match=message):
        evaluate_model(make(), segmentation_processor() if processor else None, TASK, data_dir=tmp_path / "scenes")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs data_dir=, a folder, or data=.*none is given"),
        ({"data_dir": "x", "data": "y"}, "both are given"),
        ({"data_dir": "nowhere"}, "no folder nowhere"),
        ({"data": [1, 2]}, "must be a datasets.Dataset.*got list"),
        ({"data": Dataset.from_dict({"picture": [1]})}, "has no column image or img; it has picture"),
        ({"data_dir": "x", "ignore_index": "none"}, "ignore_index='none' must be a whole number"),
        ({"data_dir": "x", "top": 5}, "does not take top; it takes ignore_index, reduce_labels"),
    ],
    ids=["none", "both", "nowhere", "a list", "columns", "ignore_index", "unknown option"],
)
def test_data_that_do_not_fit_are_refused(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate_model(segmenter(), segmentation_processor(), TASK, **options)


def test_a_processor_that_crops_is_refused(tmp_path):
    processor = BeitImageProcessorPil(do_center_crop=True)
    with pytest.raises(ValueError, match="BeitImageProcessorPil crops images, and semantic-segmentation is of whole"):
        evaluate_model(segmenter(), processor, TASK, data_dir=write_scenes(tmp_path / "scenes"))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is empty: it holds no samples with annotations for semantic-segmentation"):
        evaluate_model(segmenter(), segmentation_processor(), TASK, data_dir=tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    with pytest.raises(ValueError, match="holds no samples with annotations for semantic-segmentation"):
        evaluate_model(segmenter(), segmentation_processor(), TASK, data_dir=tmp_path)
