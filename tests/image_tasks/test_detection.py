"""Detectors: average precision against a loop over boxes, and annotations in COCO's form that do not fit."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from image_tasks_data import COLORS, SIZES, detection_processor, detector, pixels, segmenter, write_coco
from PIL import Image as Pillow

from optimum_optin.annotations.samples import AnnotatedSamples
from optimum_optin.evaluation.comparison import evaluate_model
from optimum_optin.image_tasks.average_precision import Boxes, mean_average_precision
from optimum_optin.image_tasks.boxes import boxes_of, read_coco

TASK = "object-detection"
NEEDED = pytest.mark.skipif(importlib.util.find_spec("pycocotools") is None, reason="needs pycocotools")


@pytest.fixture
def installed(monkeypatch):
    """What is refused is refused without pycocotools, too."""
    monkeypatch.setattr("optimum_optin.image_tasks.detection.check_installed", lambda: None)


def _overlap(one, other):
    """Intersection over union of two boxes (x, y, width, height)."""
    sides = [
        max(0.0, min(one[axis] + one[axis + 2], other[axis] + other[axis + 2]) - max(one[axis], other[axis]))
        for axis in range(2)
    ]
    both = sides[0] * sides[1]
    return both / (one[2] * one[3] + other[2] * other[3] - both)


def _average_precision(true, predicted, category, overlap):
    """Precision at 101 recalls, each the best at that recall or more; `None` without boxes."""
    wanted = [[box for box, label in zip(each.boxes, each.labels, strict=True) if label == category] for each in true]
    count = sum(map(len, wanted))
    if not count:
        return None
    found = [
        (score, image, box)
        for image, each in enumerate(predicted)
        for box, label, score in zip(each.boxes, each.labels, each.scores, strict=True)
        if label == category
    ]
    used, hits = [set() for _ in true], []
    for _, image, box in sorted(found, key=lambda each: -each[0]):
        free = [place for place in range(len(wanted[image])) if place not in used[image]]
        best = max(free, key=lambda place: _overlap(box, wanted[image][place]), default=None)
        hit = best is not None and _overlap(box, wanted[image][best]) >= overlap
        used[image] |= {best} if hit else set()
        hits.append(hit)
    right = np.cumsum(hits)
    recall, precision = right / count, right / np.arange(1, len(hits) + 1)
    return np.mean([max(precision[recall >= level], default=0.0) for level in np.linspace(0, 1, 101)])


def _means(true, predicted, categories, overlaps):
    each = [
        _average_precision(true, predicted, category, level) for category in range(categories) for level in overlaps
    ]
    return np.mean([value for value in each if value is not None])


def _scenes(images=14, categories=3, seed=0):
    generator = np.random.default_rng(seed)
    true, predicted = [], []
    for _ in range(images):
        boxes = np.concatenate([generator.uniform(0, 40, (4, 2)), generator.uniform(6, 20, (4, 2))], axis=1)
        labels = generator.integers(0, categories, 4)
        near = boxes + generator.normal(0, 1.5, boxes.shape)
        wrong = np.concatenate([generator.uniform(0, 40, (3, 2)), generator.uniform(6, 20, (3, 2))], axis=1)
        scores = generator.random(7)
        others = np.concatenate([labels, generator.integers(0, categories, 3)])
        true.append(Boxes(boxes.tolist(), labels.tolist()))
        predicted.append(Boxes(np.concatenate([near, wrong]).tolist(), others.tolist(), scores=scores.tolist()))
    return true, predicted


@NEEDED
def test_it_is_that_of_a_loop():
    true, predicted = _scenes()
    metrics, by_category = mean_average_precision(true, predicted, 4)
    overlaps = [0.5 + 0.05 * step for step in range(10)]
    expected = {"map": overlaps, "map_50": [0.5], "map_75": [0.75]}
    for name, levels in expected.items():
        assert metrics[name][0] == pytest.approx(_means(true, predicted, 4, levels), abs=1e-6)
    assert set(by_category) == {0, 1, 2}, "there are no boxes of the fourth"
    for category, value in by_category.items():
        each = [_average_precision(true, predicted, category, level) for level in overlaps]
        assert value == pytest.approx(np.mean(each), abs=1e-6)


@NEEDED
def test_its_standard_error_is_that_of_a_jackknife():
    true, predicted = _scenes(14)  # fewer than 20, so that each group is an image
    left = [
        _means(true[:place] + true[place + 1 :], predicted[:place] + predicted[place + 1 :], 3, [0.5])
        for place in range(14)
    ]
    expected = np.sqrt(13 / 14 * np.square(np.array(left) - np.mean(left)).sum())
    assert mean_average_precision(true, predicted, 3)[0]["map_50"][1] == pytest.approx(expected, rel=1e-4)
    assert mean_average_precision(true[:1], predicted[:1], 3)[0]["map"][1] is None


@NEEDED
def test_a_model_that_finds_nothing_has_none():
    true, predicted = _scenes()
    nothing = [Boxes([], []) for _ in predicted]
    assert mean_average_precision(true, nothing, 3)[0]["map"][0] == 0
    exactly = [Boxes(each.boxes, each.labels, scores=[0.5] * len(each.labels)) for each in true]
    assert mean_average_precision(true, exactly, 3)[0]["map"][0] == pytest.approx(1)


@NEEDED
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_folder_in_cocos_form_is_measured_as_a_loop_does(tmp_path, batch_size):
    model, processor = detector(), detection_processor()
    found = evaluate_model(model, processor, TASK, data_dir=write_coco(tmp_path / "scenes"), batch_size=batch_size)
    true, predicted = [], []
    for place, image in enumerate(pixels()):
        with torch.no_grad():
            outputs = model(**processor(images=Pillow.fromarray(image), return_tensors="pt"))
        (each,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[SIZES[place]])
        corners = each["boxes"].double().numpy()
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        predicted.append(Boxes(sides.tolist(), each["labels"].tolist(), scores=each["scores"].tolist()))
        boxes = [[1 + color, 2, 8 + place, 9] for color in range(2)]
        true.append(Boxes(boxes, [2 - (place + color) % 3 for color in range(2)]))  # named in reverse
    overlaps = [0.5 + 0.05 * step for step in range(10)]
    assert found["metrics"]["map"]["value"] == pytest.approx(_means(true, predicted, 3, overlaps), abs=1e-6)
    assert set(found["classes"]) == set(COLORS)
    assert (found["dataset"], found["split"], found["samples"]) == ("scenes", "all", 6)


def _perfect(monkeypatch, known):
    """A model whose processor finds the boxes that there are, and so tells whether they come in as they should."""

    def post_process(self, outputs, threshold, target_sizes):
        assert threshold == 0
        each = []
        for _ in target_sizes:
            boxes = known.pop(0)
            corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes.boxes]).view(-1, 4)
            scores = torch.linspace(0.9, 0.5, len(boxes.labels))
            each.append({"scores": scores, "labels": torch.tensor(boxes.labels), "boxes": corners})
        return each

    processor = detection_processor()
    monkeypatch.setattr(type(processor), "post_process_object_detection", post_process)
    return processor


def _known():
    return [
        Boxes(
            [[1.0 + color, 2.0, 8.0 + place, 9.0] for color in range(2)],
            [2 - (place + color) % 3 for color in range(2)],
        )
        for place in range(6)
    ]


@NEEDED
def test_boxes_and_categories_come_in_as_they_are(tmp_path, monkeypatch):
    folder = write_coco(tmp_path / "scenes")
    found = evaluate_model(detector(), _perfect(monkeypatch, _known()), TASK, data_dir=folder, batch_size=1)
    assert found["metrics"]["map"]["value"] == pytest.approx(1)
    rows = read_coco(folder, None).rows
    objects = [{name: row["objects"][name] for name in ("bbox", "category")} for row in rows]
    features = Features(
        {
            "image": Image(),
            "objects": {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=COLORS[::-1]))},
        }
    )
    data = Dataset.from_dict({"image": [row["image"] for row in rows], "objects": objects}, features=features)
    found = evaluate_model(detector(), _perfect(monkeypatch, _known()), TASK, data=data, batch_size=1)
    assert found["metrics"]["map"]["value"] == pytest.approx(1)


@NEEDED
def test_the_metric_is_one_of_evaluate():
    import evaluate

    from optimum_optin.evaluation import average_precision_metric
    from optimum_optin.evaluation.average_precision_metric import MeanAveragePrecision

    true, predicted = _scenes()
    found = [{"boxes": each.boxes, "labels": each.labels, "scores": each.scores} for each in predicted]
    wanted = [{"boxes": each.boxes, "labels": each.labels} for each in true]
    expected = mean_average_precision(true, predicted, 3)[0]["map"][0]
    for metric in (MeanAveragePrecision(), evaluate.load(average_precision_metric.__file__)):
        assert metric.compute(predictions=found, references=wanted, num_labels=3)["map"] == pytest.approx(expected)


def test_images_stand_beside_the_file_of_their_split(tmp_path):
    for split in ("train", "test"):
        write_coco(tmp_path / split, "instances.json")
    found = read_coco(tmp_path, None)
    assert found.split == "test" and found.rows[0]["image"] == str(tmp_path / "test" / "images" / "0.png")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("annotations.json", None),
        ("valid/_annotations.coco.json", None),
        ("annotations/instances_val2017.json", "validation"),
        ("train.json", "train"),
        ("annotations/instances_test.json", "test"),
    ],
)
def test_files_of_several_layouts_are_found(tmp_path, name, split):
    found = read_coco(write_coco(tmp_path, name), split)
    assert len(found) == 6 and found.categories == tuple(COLORS[::-1])
    assert found.split == (split or ("validation" if "valid" in name else "all"))


# Bad input


def _change(change):
    def spoil(folder):
        file = folder / "annotations.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return spoil


BAD = {
    "without a box": (
        _change(lambda content: content["annotations"][3].pop("bbox")),
        r"annotations\.json: annotation 4 has no bbox: a detector finds boxes",
    ),
    "an unknown category": (
        _change(lambda content: content["annotations"][3].update(category_id=99)),
        r"annotations\.json: annotation 4 has the category 99, which is none of its 3 categories",
    ),
    "an unknown image": (
        _change(lambda content: content["annotations"][3].update(image_id=99)),
        r"annotations\.json: annotations are of an image 99, which is not among its images",
    ),
    "a missing file": (
        lambda folder: (folder / "images" / "2.png").unlink(),
        r"annotations\.json names the image 2\.png, which is in none of",
    ),
    "a box of three numbers": (
        _change(lambda content: content["annotations"][0].update(bbox=[1, 2, 3])),
        r"0\.png has the box \[1, 2, 3\]: a box is \(x, y, width, height\)",
    ),
    "no boxes at all": (
        _change(lambda content: content["annotations"].clear()),
        "none of 6 images of scenes has a box: there is nothing to find",
    ),
    "classes that the model lacks": (
        _change(lambda content: content["categories"][0].update(name="purple")),
        "has classes that the model does not know: purple",
    ),
    "no categories": (
        _change(lambda content: content.pop("categories")),
        r"annotations\.json is not in COCO's form: it has no list of categories",
    ),
    "no JSON": (
        lambda folder: (folder / "annotations.json").write_text("{"),
        r"annotations\.json is damaged",
    ),
    "two files": (
        lambda folder: (folder / "others.json").write_text("{}"),
        r"has several JSON files that may hold boxes, annotations\.json, others\.json: keep one, or name it by split=",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
@pytest.mark.usefixtures("installed")
def test_annotations_that_do_not_fit_are_refused_before_a_forward_pass(tmp_path, spoil, message):
    model = detector()
    model.register_forward_pre_hook(lambda *_: pytest.fail("a forward pass before the input was refused"))
    spoil(write_coco(tmp_path / "scenes"))
    with pytest.raises(ValueError, match=message):
        evaluate_model(model, detection_processor(), TASK, data_dir=tmp_path / "scenes")


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (None, "photo has no objects"),
        ({"segmentation": [[1]]}, "the objects of photo have no bbox, but segmentation"),
        ({"bbox": [[1, 2, 3, 4]]}, "the objects of photo have no category, but bbox"),
        ({"bbox": [[1, 2, -3, 4]], "category": [0]}, r"photo has the box \[1, 2, -3, 4\]"),
        ({"bbox": [[1, 2, float("nan"), 4]], "category": [0]}, "photo has the box"),
        ({"bbox": [[1, 2, 3, 4]], "category": [0, 1]}, "photo has 1 boxes and 2 values of category"),
        ([{"bbox": [1, 2, 3, 4], "category": 0}, {"category": 0}], "object 1 of photo has no bbox, which others have"),
    ],
)
def test_objects_that_are_no_boxes_are_refused(objects, message):
    with pytest.raises(ValueError, match=message):
        boxes_of(objects, "photo")


@pytest.mark.usefixtures("installed")
def test_labels_beyond_the_models_are_named():
    rows = [{"image": "a.png", "objects": {"bbox": [[1, 2, 3, 4]], "category": [3]}}]
    samples = AnnotatedSamples(rows, "image", "objects", "scenes", "all")
    from optimum_optin.image_tasks import ObjectDetection

    with pytest.raises(ValueError, match=r"a\.png has the label 3, and the model 3 classes, 0 to 2"):
        ObjectDetection().check_each(detector(), detection_processor(), samples)


def test_without_pycocotools_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"mean average precision needs pycocotools: pip install pycocotools\."):
        evaluate_model(detector(), detection_processor(), TASK, data_dir=write_coco(tmp_path))


@pytest.mark.usefixtures("installed")
def test_a_segmenter_is_no_detector(tmp_path):
    with pytest.raises(ValueError, match="object-detection needs a model with such a head .*got Segformer"):
        evaluate_model(segmenter(), detection_processor(), TASK, data_dir=write_coco(tmp_path))
