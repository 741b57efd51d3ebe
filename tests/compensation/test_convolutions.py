"""Convolutions: refitted by patches, through batch norms and where units are handed on, against least squares."""

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
import transformers as tr
from torch import nn
from torch.nn.functional import unfold
from toys import Bottlenecks, Padding, PaddingConv2d, Pictures, Residual, Scales, perturbed

from optimum_optin import OptinConfig, OptinPruner, check_architecture, find_groups
from optimum_optin.architectures.group import Blocks, Consumer, Cut, Group
from optimum_optin.compensation import ridge
from optimum_optin.compensation.refit import ALONE, kept_outputs, refit
from optimum_optin.editing.masking import masked
from optimum_optin.editing.surgery import rewrite
from optimum_optin.passes.calibration import calibrate, dense_passes
from optimum_optin.passes.hooks import observed


class Pair(nn.Module):
    """Two convolutions beside a shortcut, each with a batch norm behind it."""

    def __init__(self, end=torch.relu):
        super().__init__()
        self.end = end
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)

    def forward(self, pixels):
        x = pixels + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(pixels)))))
        return self.head(self.end(x).mean((2, 3)))


def prepared(module, images=24, side=8):
    torch.manual_seed(1)
    model = OptinPruner.from_model(perturbed(module), {"pixels": torch.randn(2, 3, side, side)}).model
    batches = [{"pixels": torch.randn(images // 3, 3, side, side)} for _ in range(3)]
    return model, find_groups(model), calibrate(model, batches)


def cut_by(model, groups, masks):
    """A copy without the masked units, not yet refitted."""
    cut = copy.deepcopy(model)
    rewrite(cut, groups, masks)
    return cut


def cut_pair(model, groups, calibration):
    """A pair without two of its inner channels, not yet refitted, and the starts of its refit."""
    (group,) = (group for group in groups if group.consumer == "conv2")
    pruned = copy.deepcopy(model)
    rewrite(pruned, [group], {group.key: torch.tensor([True, False, True, True, False, True])})
    return pruned, dense_passes(model, groups, calibration, OptinConfig())


@torch.no_grad()
def test_a_consumer_is_refitted_to_the_stream_by_least_squares():
    """What its batch norm makes of the refitted convolution, against `torch.linalg.lstsq` over all patches."""
    model, groups, calibration = prepared(Pair(torch.tanh))
    pruned, starts = cut_pair(model, groups, calibration)
    before = pruned.conv2.weight.clone()
    refit(model, [pruned], groups, starts, strength=1e-9)
    assert not torch.equal(before, pruned.conv2.weight)
    images = torch.cat([batch["pixels"] for batch in calibration])
    weights = torch.cat([start.weights["conv2"] for start in starts]).flatten().double().sqrt()[:, None]
    inputs = torch.relu(pruned.norm1(pruned.conv1(images)))
    rows = unfold(inputs, 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    target = model.norm2(model.conv2(torch.relu(model.norm1(model.conv1(images)))))
    target = target.flatten(2).transpose(1, 2).flatten(0, 1).double()
    best = torch.linalg.lstsq(rows * weights, target * weights).solution
    found = pruned.norm2(pruned.conv2(inputs)).flatten(2).transpose(1, 2).flatten(0, 1).double()
    torch.testing.assert_close(found, rows @ best, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("rounds", [1, 2])
@torch.no_grad()
def test_what_a_relu_lets_pass_comes_closer_with_every_round(rounds):
    """The first round is least squares of all that the ReLU reads; the next ones go by what it makes of that."""
    model, groups, calibration = prepared(Pair(), images=48)
    images = torch.cat([batch["pixels"] for batch in calibration])
    off = []
    for each in (rounds, rounds + 1):
        pruned, starts = cut_pair(model, groups, calibration)
        starts = [replace(start, weights={"conv2": torch.ones_like(start.weights["conv2"])}) for start in starts]
        refit(model, [pruned], groups, starts, strength=1e-9, rounds=each)
        dense, found = (each.norm2(each.conv2(torch.relu(each.norm1(each.conv1(images))))) for each in (model, pruned))
        off.append(float((torch.relu(images + dense) - torch.relu(images + found)).square().sum()))
    assert off[1] < off[0]


class Perceptrons(nn.Module):
    """Layers of linears with a ReLU between them; their producers are corrected in what they read."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(2))
        self.head = nn.Linear(6, 4)

    def forward(self, pixels):
        x = pixels.flatten(2)[..., :6]
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(1))


@torch.no_grad()
def test_linears_are_corrected_once_whatever_reads_them():
    model, groups, calibration = prepared(Perceptrons())
    masks = {group.key: torch.arange(group.units) % 3 > 0 for group in groups}
    starts, found = dense_passes(model, groups, calibration, OptinConfig()), []
    for rounds in (1, 3):
        pruned = copy.deepcopy(model)
        rewrite(pruned, groups, masks)
        refit(model, [pruned], groups, starts, masks=[masks], rounds=rounds)
        found.append(pruned.layers[1][0].weight)
    assert not torch.equal(found[0], model.layers[1][0].weight[: len(found[0])])
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)


@torch.no_grad()
def test_the_head_behind_convolutions_is_refitted_by_least_squares():
    """What the pruned model says, against `torch.linalg.lstsq` of the dense logits on what its head reads."""
    model, groups, calibration = prepared(Pair(), images=48)
    pruned, starts = cut_pair(model, groups, calibration)
    before = pruned.head.weight.clone()
    refit(model, [pruned], groups, starts, strength=1e-9)
    assert not torch.equal(before, pruned.head.weight)
    images = torch.cat([batch["pixels"] for batch in calibration])
    with observed(pruned, ["head"]) as seen:
        said = pruned(images).double()
    rows = torch.cat([seen["head"].input, torch.ones(len(images), 1)], 1).double()
    best = torch.linalg.lstsq(rows, model(images).double()).solution
    torch.testing.assert_close(said, rows @ best, atol=1e-4, rtol=1e-4)


class TwoHeads(Pair):
    """Reads its stream with one head twice."""

    def forward(self, pixels):
        x = pixels + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(pixels)))))
        return self.head(torch.relu(x).mean((2, 3))) + self.head(torch.relu(x).amax((2, 3)))


class Scaled(Pair):
    """Returns something else than its head does."""

    def forward(self, pixels):
        return 2 * super().forward(pixels)


@pytest.mark.parametrize("module", [TwoHeads, Scaled])
def test_a_head_is_left_that_does_not_write_the_logits_alone(module):
    model, groups, calibration = prepared(module())
    pruned, starts = cut_pair(model, groups, calibration)
    before = pruned.head.weight.clone()
    refit(model, [pruned], groups, starts)
    torch.testing.assert_close(pruned.head.weight, before, atol=0, rtol=0)


@torch.no_grad()
def test_a_late_shortcut_is_a_part_of_what_the_refit_aims_at():
    """A projection that runs after the block's last convolution: the sum of both, by least squares over all patches."""

    class Late(Pair):
        def __init__(self):
            super().__init__(torch.tanh)
            self.project = nn.Conv2d(3, 3, 1)

        def forward(self, pixels):
            written = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(pixels)))))
            return self.head(self.end(self.project(pixels) + written).mean((2, 3)))

    model, groups, calibration = prepared(Late())
    pruned, starts = cut_pair(model, groups, calibration)
    pruned.project.weight += 0.1 * torch.randn_like(pruned.project.weight)  # an error of the stream
    assert not refit(model, [pruned], groups.of_role("channels"), starts, strength=1e-9)
    images = torch.cat([batch["pixels"] for batch in calibration])
    weights = torch.cat([start.weights["conv2"] for start in starts]).flatten().double().sqrt()[:, None]
    inputs = torch.relu(pruned.norm1(pruned.conv1(images)))
    rows = unfold(inputs, 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    target = model.project(images) + model.norm2(model.conv2(torch.relu(model.norm1(model.conv1(images)))))
    target = (target - pruned.project(images)).flatten(2).transpose(1, 2).flatten(0, 1).double()
    best = torch.linalg.lstsq(rows * weights, target * weights).solution
    found = pruned.norm2(pruned.conv2(inputs)).flatten(2).transpose(1, 2).flatten(0, 1).double()
    torch.testing.assert_close(found, rows @ best, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("rounds", [1, 3])
def test_passes_of_a_refit_with_a_late_shortcut(rounds):
    """One for each batch and model, and one more for each late sum; more rounds take no more."""
    model, groups, calibration = prepared(Residual(), images=24)
    groups = groups.of_role("channels")  # those of the stream have no consumers
    masks = {group.key: torch.arange(group.units) % 2 == 0 for group in groups}
    pruned = cut_by(model, groups, masks)
    starts, runs = dense_passes(model, groups, calibration, OptinConfig()), Counter()
    for name, each in (("dense", model), ("pruned", pruned)):
        each.first.register_forward_hook(lambda *_, name=name: runs.update([name]))
    refit(model, [pruned], groups, starts, masks=[masks], rounds=rounds)
    late = 1
    assert runs == {"dense": 1 + 3 * (1 + late), "pruned": 3 * (1 + late)}


@pytest.mark.parametrize("module", [Pair, Pictures, Bottlenecks, Scales])
@torch.no_grad()
def test_a_refit_comes_closer_to_the_dense_model(module):
    """Also where convolutions hand units to each other, and where several read one stream."""
    model, groups, calibration = prepared(module(), images=48)
    masks = {group.key: torch.arange(group.units) % 3 > 0 for group in groups}
    cut = cut_by(model, groups, masks)
    refitted = copy.deepcopy(cut)
    refit(model, [refitted], groups, dense_passes(model, groups, calibration, OptinConfig()), masks=[masks])
    new = torch.randn(64, 3, 8, 8)
    dense = model(new)
    off = [float((each(new) - dense).square().mean()) for each in (refitted, cut)]
    assert off[0] < 0.5 * off[1]


@torch.no_grad()
def test_convolutions_that_pad_by_themselves_are_refitted_as_those_that_pytorch_pads():
    padding = perturbed(Padding())
    plain = copy.deepcopy(padding)
    for module in [*plain.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, PaddingConv2d) and child.stride == (1, 1):
                same = nn.Conv2d(child.in_channels, child.out_channels, child.kernel_size, padding="same")
                same.load_state_dict(child.state_dict())
                setattr(module, name, same)
    config, images = OptinConfig(flops=0.6, probes=8), torch.randn(24, 3, 16, 16)
    found = [
        OptinPruner.from_model(module, images[:2]).prune(images, config)(images) for module in (padding, plain.eval())
    ]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
    assert float((found[0] - padding(images)).norm()) > 1e-3


def test_convolutions_that_hand_on_units_need_the_masks():
    model, groups, calibration = prepared(Bottlenecks())
    masks = {group.key: torch.arange(group.units) % 2 > 0 for group in groups}
    cut = cut_by(model, groups, masks)
    with pytest.raises(ValueError, match="masks"):
        refit(model, [cut], groups, dense_passes(model, groups, calibration, OptinConfig()))


@torch.no_grad()
def test_masks_and_cuts_agree_with_several_readers():
    model, groups, _ = prepared(Bottlenecks())
    assert any(len(group.consumers) > 1 for group in groups)
    assert {group.role for group in groups} > {"stream_channels", "channels"}
    masks = {group.key: torch.arange(group.units) % 2 == 0 for group in groups}
    images = torch.randn(4, 3, 8, 8)
    with masked(model, groups, masks):
        expected = model(images)
    cut = cut_by(model, groups, masks)
    torch.testing.assert_close(cut(images), expected, atol=1e-5, rtol=1e-4)


class Flat(nn.Module):
    """Convolutions whose last channels a linear reads place by place, as in VGG."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.up, self.head = nn.Linear(8 * 16, 12), nn.Linear(12, 4)

    def forward(self, pixels):
        x = torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(pixels))))))
        x = nn.functional.max_pool2d(x, 2)
        return self.head(torch.relu(self.up(x.flatten(1))))


@torch.no_grad()
def test_where_too_many_places_are_read_channels_are_refitted_by_their_means(monkeypatch):
    """No sum is larger than channels by channels, and the refit still comes closer."""
    model, groups, calibration = prepared(Flat(), images=48)
    masks = {group.key: torch.arange(group.units) % 4 > 0 for group in groups}
    cut = cut_by(model, groups, masks)
    starts = dense_passes(model, groups, calibration, OptinConfig())
    sizes, made = [], ridge.Regression.__init__

    def noting(self, inputs, outputs, device="cpu"):
        sizes.append(inputs)
        made(self, inputs, outputs, device)

    monkeypatch.setattr(ridge.Regression, "__init__", noting)
    off, most = [], []
    new = torch.randn(64, 3, 8, 8)
    for widest in (8192, 10):
        monkeypatch.setattr("optimum_optin.running.linears.WIDEST", widest)
        refitted = copy.deepcopy(cut)
        refit(model, [refitted], groups, starts, masks=[masks])
        off.append(float((refitted(new) - model(new)).square().mean()))
        most.append(max(sizes))
        sizes.clear()
    assert most == [6 * 16, 9], "places of channels that are left, and at most what the head reads"
    assert off[1] < 0.7 * float((cut(new) - model(new)).square().mean())


def test_where_too_many_places_are_read_channels_are_scored_alone(monkeypatch, tmp_path):
    monkeypatch.setattr("optimum_optin.running.linears.WIDEST", 10)
    images = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pruner = OptinPruner.from_model(perturbed(Flat()), images[:2])
    scores = pruner.score(images, OptinConfig(probes=8))
    assert all((score > 0).any() and score.isfinite().all() for score in scores.terms["output"].values())


def test_sums_of_wide_patches_stay_in_memory():
    """The refit of a 3 x 3 convolution of 512 channels: the sums that it holds at once, in bytes."""
    inputs = 512 * 9
    sums = ridge.Regression(inputs, 512, "meta")
    held = sum(each.numel() * each.element_size() for each in (sums.inputs.products.packed, sums.cross))
    assert 2 * held < 0.15e9  # two are summed, one to fit and one to choose by


CONFIGS = {
    "resnet": tr.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[2, 2], layer_type="basic", num_labels=3),
    "bottleneck": tr.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 2], num_labels=3),
    "regnet": tr.RegNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 2], groups_width=4, num_labels=3),
    "mobilenet_v2": tr.MobileNetV2Config(depth_multiplier=0.25, image_size=32, num_labels=3),
    "convnext": tr.ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 2], num_stages=2, image_size=32, num_labels=3),
    "efficientnet": tr.EfficientNetConfig(
        width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320, image_size=32, num_labels=3
    ),
}


def shaken(model):
    """The model in evaluation mode, with weights and statistics that are not those of the start."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("running_var"):
                tensor.mul_(1 + 0.3 * torch.rand_like(tensor))
            elif tensor.is_floating_point():
                tensor.add_(0.05 * torch.randn_like(tensor))
    return model.eval()


@pytest.mark.parametrize("case", CONFIGS)
def test_models_of_transformers_from_end_to_end(case, tmp_path):
    """Proved, scored, refitted, saved, loaded by the plain Auto class: equal, and with the MACs that were counted."""
    torch.manual_seed(0)
    model = shaken(tr.AutoModelForImageClassification.from_config(CONFIGS[case]))
    proof = check_architecture(model, {"pixel_values": torch.randn(1, 3, 32, 32)})
    assert sum(each.proved for each in proof.groups) > 1
    pruner = OptinPruner(model)
    images = [{"pixel_values": torch.randn(3, 32, 32)} for _ in range(24)]
    pruned = pruner.prune(images, OptinConfig(flops=0.6, probes=8), save_dir=tmp_path / case)
    assert 0.4 < pruner.report.flops_achieved <= 0.6 + 1e-6
    loaded = tr.AutoModelForImageClassification.from_pretrained(tmp_path / case).eval()
    new = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(new).logits, pruned(new).logits, atol=1e-5, rtol=1e-4)
    assert set(pruner.report.refit.values()) <= {ALONE}


def test_outputs_of_a_consumer_that_two_groups_share_are_left_where_both_have_them():
    writes = [Blocks("second.weight", 0, (1,), start) for start in (0, 4)]
    groups = [
        Group(f"model.{place}", "channels", 4, 1, Cut((), (), (write,), ())) for place, write in enumerate(writes)
    ]
    groups.append(Group("model", "channels", 3, 1, Cut((Consumer("second"),), ())))
    dense = nn.Sequential()
    dense.second = nn.Conv2d(3, 8, 1)
    masks = {"model.0.channels": torch.tensor([1, 0, 1, 1]), "model.1.channels": torch.tensor([0, 1, 1, 0])}
    assert kept_outputs(dense, groups, masks)["second"].tolist() == [0, 2, 3, 5, 6]
