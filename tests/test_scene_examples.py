"""The examples of dense prediction: scenes and their masks, their files, and trained segmenters that load."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import write_cifar10, write_fashion
from pictures import Image
from safetensors.torch import load_file
from tiny import tiny_model
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    SegformerImageProcessorPil,
)
from transformers.modeling_outputs import SemanticSegmenterOutput

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import fashion_scenes
import scene_accuracy
import train_segmenter
from fashion_scenes import CLASSES, FashionScenes


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """A folder with both sets of images, which caches nothing elsewhere."""
    monkeypatch.setattr("cifar10_tensors.CACHE", tmp_path / "cache")
    return write_cifar10(write_fashion(tmp_path))


def same(one, other):
    return (
        np.array_equal(one.image, other.image)
        and np.array_equal(one.instances, other.instances)
        and one.classes == other.classes
    )


# Scenes


@pytest.mark.parametrize("photos", [False, True], ids=["waves", "photos"])
def test_a_scene_depends_on_its_number_the_split_and_the_seed_alone(photos, data):
    folders = {"fashion_dir": data, "cifar10_dir": data if photos else None}
    scenes = FashionScenes("train", 3, size=64, seed=1, **folders)
    again = FashionScenes("train", 9, size=64, seed=1, **folders)
    assert scenes[2].image.shape == (64, 64, 3)
    assert all(same(scenes[number], again[number]) for number in (2, 0, 1))
    assert len(list(scenes)) == len(scenes) == 3
    assert not same(scenes[0], scenes[1])
    assert not same(scenes[0], FashionScenes("train", 3, size=64, seed=2, **folders)[0])
    assert not same(scenes[0], FashionScenes("test", 3, size=64, seed=1, **folders)[0])


def test_masks_are_where_garments_are_and_enough_of_each_is_seen():
    white, black = np.full((4, 28, 28), 255, np.uint8), np.zeros((80, 80, 3))
    white[2, :, :14] = 0  # half a garment
    labels, sides = np.array([0, 3, 5, 9]), np.full(4, 20)
    seen = set()
    for seed in range(40):
        random = np.random.default_rng(seed)
        order = random.permutation(4)
        scene = fashion_scenes.paste(random, black, white[order], labels[order], sides)
        assert np.array_equal(scene.image.max(-1) > 45, scene.instances > 0)
        assert sorted(set(scene.instances.ravel()) - {0}) == list(range(1, len(scene.classes) + 1))
        for instance, label in enumerate(scene.classes, start=1):
            mask = scene.instances == instance
            assert mask.sum() >= 0.6 * (200 if label == 6 else 400)
            assert set(scene.semantic[mask]) == {label}
            colors = scene.image[mask].astype(float)  # one, but for noise and a soft edge
            assert np.median(np.abs(colors - np.median(colors, axis=0)), axis=0).max() < 6
        assert set(scene.semantic[scene.instances == 0]) == {0}
        seen |= set(scene.classes)
    assert seen == {1, 4, 6, 10}
    assert not black.any()


def test_a_garment_without_pixels_is_left_out():
    black, nothing = np.zeros((40, 40, 3)), np.zeros((1, 28, 28), np.uint8)
    scene = fashion_scenes.paste(np.random.default_rng(0), black, nothing, np.array([2]), np.array([20]))
    assert scene.classes == ()
    assert not scene.instances.any()


def test_only_scenes_that_there_are_can_be_had(data):
    with pytest.raises(IndexError, match="scene 2 of 2"):
        FashionScenes("test", 2, fashion_dir=data)[2]


def test_a_written_folder_holds_the_scenes(data, monkeypatch, capsys):
    folders = ["--backgrounds", str(data), "--fashion-dir", str(data)]
    options = ["--train", "3", "--test", "2", "--size", "48", "--seed", "5"]
    monkeypatch.setattr(sys, "argv", ["fashion_scenes", str(data / "out"), *folders, *options])
    fashion_scenes.main()
    assert "3 train scenes in" in capsys.readouterr().out
    for split, count in (("train", 3), ("test", 2)):
        folder = data / "out" / split
        coco = json.loads((folder / "instances.json").read_text())
        assert [(entry["id"], entry["name"]) for entry in coco["categories"]] == list(enumerate(CLASSES))[1:]
        scenes = FashionScenes(split, count, size=48, seed=5, fashion_dir=data, cifar10_dir=data)
        entries = iter(coco["annotations"])
        for image, scene in zip(coco["images"], scenes, strict=True):
            read = [np.asarray(Image.open(folder / name / image["file_name"])) for name in ("images", "annotations")]
            assert np.array_equal(read[0], scene.image)
            assert np.array_equal(read[1], scene.semantic)
            for instance, label in enumerate(scene.classes, start=1):
                entry, mask = next(entries), scene.instances == instance
                assert (entry["image_id"], entry["category_id"]) == (image["id"], label)
                x, y, width, height = entry["bbox"]
                assert mask[y : y + height, x : x + width].sum() == mask.sum() == entry["area"]
                edges = mask[y], mask[y + height - 1], mask[:, x], mask[:, x + width - 1]
                assert all(edge.any() for edge in edges)
                assert entry["segmentation"]["size"] == [48, 48]
                assert np.array_equal(decoded(entry["segmentation"]["counts"]).reshape(48, 48).T, mask)
        assert next(entries, None) is None


@pytest.mark.parametrize("first", [False, True])
def test_run_lengths_begin_with_what_is_not_of_the_mask(first):
    mask = np.random.default_rng(0).random((5, 3)) < 0.5
    mask[0, 0] = first
    counts = fashion_scenes.run_lengths(mask)
    assert (counts[0] == 0) == first
    assert np.array_equal(decoded(counts).reshape(3, 5).T, mask)


def decoded(counts):
    return np.concatenate([np.full(count, number % 2 == 1) for number, count in enumerate(counts)])


# How well a segmenter does


def test_figures_are_those_of_counting_pixel_by_pixel():
    found, true = torch.randint(0, 4, (2, 6, 5, 7))
    true[true == 2] = 0  # a class that is found but not there does not count
    counts = scene_accuracy.confusion(found, true)
    pairs = list(zip(found.flatten().tolist(), true.flatten().tolist(), strict=True))
    each = [
        sum(pair == (label, label) for pair in pairs) / sum(label in pair for pair in pairs)
        for label in set(true.flatten().tolist())
    ]
    assert scene_accuracy.mean_iou(counts) == pytest.approx(sum(each) / 3)
    assert scene_accuracy.accuracy(counts) == pytest.approx(sum(one == other for one, other in pairs) / len(pairs))


def test_a_model_that_is_right_has_a_mean_iou_of_1(data):
    scenes = FashionScenes("test", 5, size=32, fashion_dir=data)
    processor = SegformerImageProcessorPil(size={"height": 32, "width": 32})
    answers = iter(torch.from_numpy(scene.semantic).long() for scene in scenes)

    class Knows(torch.nn.Module):
        def forward(self, pixel_values):
            maps = torch.stack([next(answers) for _ in pixel_values])
            logits = torch.nn.functional.one_hot(maps, len(CLASSES)).movedim(-1, 1).float()
            return SemanticSegmenterOutput(logits=logits)

    measured = scene_accuracy.scene_accuracy(Knows(), processor, scenes, batch_size=2)
    assert (measured.scenes, measured.mean_iou, measured.pixel_accuracy) == (5, 1, 1)
    background = np.mean([scene.semantic == 0 for scene in scenes])
    assert measured.background_pixel_accuracy == pytest.approx(background)
    assert measured.background_mean_iou == pytest.approx(
        background / len({label for scene in scenes for label in (0, *scene.classes)})
    )


# Training


def options(data, save_dir):
    folders = ["--backgrounds", str(data), "--fashion-dir", str(data), "--save-dir", str(save_dir)]
    return [*folders, "--test-scenes", "2"]


@pytest.mark.parametrize(
    ("architecture", "auto_class"),
    [("segformer", AutoModelForSemanticSegmentation), ("mask2former", AutoModelForUniversalSegmentation)],
)
def test_a_trained_segmenter_loads(architecture, auto_class, data, monkeypatch, capsys):
    if architecture == "mask2former":
        pytest.importorskip("scipy")
    monkeypatch.setattr(train_segmenter, "ENCODER_BATCH", 4)
    monkeypatch.setattr(train_segmenter, "REPORTED", 2)
    arguments = [
        architecture,
        *options(data, data / "out"),
        "--steps",
        "3",
        "--batch-size",
        "2",
        "--encoder-steps",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", ["train_segmenter", *arguments])
    train_segmenter.main()
    printed = capsys.readouterr().out
    assert "garments, step 2 of 2" in printed
    assert "reloaded from disk, 2 test scenes: mean IoU 0." in printed
    model = auto_class.from_pretrained(data / "out")
    assert tuple(model.config.id2label.values()) == CLASSES
    scene = FashionScenes("test", 1, fashion_dir=data)[0]
    pixels = AutoImageProcessor.from_pretrained(data / "out")(images=scene.image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, train_segmenter.pixel_values([scene]), atol=1e-5, rtol=1e-5)


def test_each_class_of_a_scene_is_one_mask(data):
    scenes = list(FashionScenes("test", 3, size=32, fashion_dir=data))
    targets = train_segmenter.class_masks(scenes)
    for scene, masks, labels in zip(scenes, targets["mask_labels"], targets["class_labels"], strict=True):
        assert labels.tolist() == sorted({0, *scene.classes})
        assert (masks.sum(0) == 1).all()
        assert np.array_equal((masks * labels[:, None, None]).sum(0).numpy(), scene.semantic)


@pytest.mark.parametrize("architecture", train_segmenter.RECIPES)
def test_an_encoder_alone_learns_to_name_garments(architecture, data, monkeypatch):
    monkeypatch.setattr(train_segmenter, "ENCODER_BATCH", 8)
    monkeypatch.setattr(train_segmenter, "ENCODER_RATE", 1e-3)
    recipe = train_segmenter.RECIPES[architecture]
    model = recipe.model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    scenes = FashionScenes("train", 16, fashion_dir=data, **train_segmenter.ONE_GARMENT)
    assert {len(scene.classes) for scene in scenes} == {1}
    train_segmenter.learn_garments(model, scenes, argparse.Namespace(architecture=architecture, bf16=False))
    encoder = {"segformer": "segformer.", "mask2former": "model.pixel_level_module.encoder."}[architecture]
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved
    assert all(name.startswith(encoder) for name in moved)


def test_training_that_was_stopped_goes_on_to_the_same_weights(data, monkeypatch):
    monkeypatch.setattr(train_segmenter, "REPORTED", 1)
    arguments = ["segformer", "--steps", "3", "--batch-size", "2", "--no-bf16"]
    keep = train_segmenter.keep

    def stopped(*given):
        keep(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["train_segmenter", *arguments, *options(data, data / "one")])
    train_segmenter.main()
    monkeypatch.setattr(sys, "argv", ["train_segmenter", *arguments, *options(data, data / "two")])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_segmenter, "keep", stopped)
        train_segmenter.main()
    assert [file.name for file in (data / "two").iterdir()] == [train_segmenter.CHECKPOINT]
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="trained with seed 0, not 1: delete it"):
        patch.setattr(sys, "argv", [*sys.argv, "--seed", "1"])
        train_segmenter.main()
    train_segmenter.main()
    one, other = (load_file(data / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(other[name], value) for name, value in one.items())
    assert not (data / "two" / train_segmenter.CHECKPOINT).exists()


# DINOv2


@pytest.fixture
def head(monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return pytest.importorskip("train_segmentation_head", exc_type=ImportError)


def test_a_trained_segmentation_head_loads(head, data, monkeypatch, capsys):
    body = tiny_model("dinov2").base_model
    monkeypatch.setattr(head, "read_graph", lambda: None)
    monkeypatch.setattr(head, "backbone", lambda _, image_size: body)
    arguments = [*options(data, data / "out"), "--train-scenes", "20", "--image-size", "56"]
    monkeypatch.setattr(sys, "argv", ["train_segmentation_head", *arguments])
    head.main()
    assert "reloaded from disk, 2 test scenes: mean IoU 0." in capsys.readouterr().out
    model = AutoModelForSemanticSegmentation.from_pretrained(data / "out", trust_remote_code=True).eval()
    assert tuple(model.config.id2label.values()) == CLASSES
    with torch.no_grad():
        pixels = torch.randn(2, 3, 56, 28)
        output = model(pixels, labels=torch.zeros(2, 56, 28, dtype=torch.long))
        patch = model.config.patch_size
        assert output.logits.shape == (2, len(CLASSES), 56 // patch, 28 // patch)
        tokens = body.eval()(pixels).last_hidden_state[:, 1:]
        row, column = 1, 0
        expected = model.classifier(tokens[:, row * (28 // patch) + column])
        torch.testing.assert_close(output.logits[:, :, row, column], expected)
        enlarged = torch.nn.functional.interpolate(output.logits, size=(56, 28), mode="bilinear")
        torch.testing.assert_close(output.loss, -enlarged.log_softmax(1)[:, 0].mean())


def test_shares_are_those_of_the_pixels_under_a_patch(head, data):
    body = tiny_model("dinov2").base_model
    size = 4 * body.config.patch_size
    scenes = FashionScenes("train", 3, size=size, fashion_dir=data)
    processor = SegformerImageProcessorPil(size={"height": size, "width": size})
    features, shares = head.patches(head.segmenter(body), processor, scenes, batch_size=2)
    assert features.shape == (48, body.config.hidden_size)
    windows = [
        scene.semantic[y : y + size // 4, x : x + size // 4]
        for scene in scenes
        for y in range(0, size, size // 4)
        for x in range(0, size, size // 4)
    ]
    expected = np.stack([np.bincount(window.ravel(), minlength=len(CLASSES)) / window.size for window in windows])
    torch.testing.assert_close(shares, torch.from_numpy(expected).float())


def test_the_segmentation_head_fits_what_it_saw(head):
    features = torch.randn(300, 6) * torch.tensor([1, 10, 0.1, 1, 1, 0]) + 3
    shares = (features @ torch.randn(6, 3)).softmax(-1)
    weight, bias = head.logistic_regression(features, shares, penalty=0.0)
    torch.testing.assert_close((features @ weight.T + bias).softmax(-1), shares, atol=0.02, rtol=0)
