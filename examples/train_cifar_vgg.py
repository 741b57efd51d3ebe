"""Train VGG-16-BN for CIFAR-10 from scratch, to have a real convolutional network to prune.

    python examples/train_cifar_vgg.py --data-dir path/to/cifar10

A plain loop: SGD, a warm-up and a line down to zero, label smoothing, images flipped and shifted. Early epochs see the
images at 16 and 24 pixels, which costs a quarter and a half of 32 pixels. After each epoch but the last, what is needed
to go on is kept beside the result: the same command goes on from there, and to the same weights.

The result is one safetensors file that vgg_cifar.py loads, written only when training is done; the accuracy printed
last is of the network reloaded from it. The test images choose nothing: the last epoch is what is saved.
"""

import argparse
import time
from pathlib import Path

import torch
import vgg_cifar
from cifar10_tensors import accuracy, load_bytes, load_pixels, normalised
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, pad

from optimum_optin.files.folders import atomic_folder, check_folder

SIZES = (*[16] * 4, *[24] * 8, *[32] * 3)  # in pixels, one for each epoch
SHIFT = 4  # in pixels of 32
WARM_UP = 0.15  # of all steps
SMOOTHING = 0.1
CHECKPOINT = "unfinished.safetensors"
_MOMENTUM = "momentum."  # before names of weights in a checkpoint


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of cifar10_jpeg.tar.xz")
    parser.add_argument("--save-dir", type=Path, default=vgg_cifar.CACHE, help="(default: %(default)s)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, help="pixels in each epoch (default: %(default)s)"
    )
    parser.add_argument("--learning-rate", type=float, default=0.05, help="at its highest (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast in training")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    save_dir = check_folder(arguments.save_dir)

    images, labels = load_bytes(arguments.data_dir, "train")
    torch.manual_seed(arguments.seed)
    model = vgg_cifar.VGG16()
    train(model, images, labels, arguments)
    with atomic_folder(save_dir) as draft:
        save_file(weights_of(model), draft / vgg_cifar.WEIGHTS)
    (save_dir / CHECKPOINT).unlink(missing_ok=True)
    test = load_pixels(arguments.data_dir, "test")
    print(f"reloaded from disk, {len(test[0])} test images: accuracy {accuracy(vgg_cifar.load(save_dir), *test):.4f}")


def train(model: vgg_cifar.VGG16, images: Tensor, labels: Tensor, arguments: argparse.Namespace) -> None:
    """Train in place; `images` are bytes, shape (images, 3, 32, 32)."""
    model.train().to(memory_format=torch.channels_last)
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, arguments.learning_rate, momentum=0.9, nesterov=True)
    steps = -(-len(images) // arguments.batch_size)
    checkpoint = arguments.save_dir / CHECKPOINT
    begun = resume(model, optimizer, checkpoint, settings(arguments)) if checkpoint.is_file() else 0
    for epoch in range(begun, len(arguments.sizes)):
        started, loss_sum, right = time.perf_counter(), 0.0, 0
        random = torch.Generator().manual_seed(1000 * arguments.seed + epoch)  # so that resuming changes nothing
        for step, indices in enumerate(torch.randperm(len(images), generator=random).split(arguments.batch_size)):
            rate = learning_rate((epoch * steps + step) / (len(arguments.sizes) * steps))
            for group in optimizer.param_groups:
                group["lr"] = arguments.learning_rate * rate
            pixels = seen(images[indices], arguments.sizes[epoch], random)
            with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
                logits = model(pixels.to(memory_format=torch.channels_last)).float()
            loss = cross_entropy(logits, labels[indices], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(indices)
            right += int((logits.argmax(-1) == labels[indices]).sum())
        print(
            f"epoch {epoch + 1} of {len(arguments.sizes)}, {arguments.sizes[epoch]} pixels: "
            f"{time.perf_counter() - started:.0f} s; on the images as they were trained on, loss "
            f"{loss_sum / len(images):.3f}, accuracy {right / len(images):.3f}",
            flush=True,
        )
        if epoch + 1 < len(arguments.sizes):
            keep(model, optimizer, checkpoint, {**settings(arguments), "epochs": str(epoch + 1)})


def learning_rate(done: float) -> float:
    """Share of the highest learning rate when this share of all steps is done: up and down in straight lines."""
    return min(done / WARM_UP, (1 - done) / (1 - WARM_UP))


def seen(images: Tensor, size: int, random: torch.Generator) -> Tensor:
    """Each image flipped with probability 1/2 and shifted by at most 4 pixels, as pixel values of this size."""
    count, _, height, width = images.shape
    flip = (torch.rand(count, generator=random) < 0.5)[:, None, None, None]
    images = pad(normalised(torch.where(flip, images.flip(-1), images)), [SHIFT] * 4, mode="reflect")
    down, right = torch.randint(2 * SHIFT + 1, (2, count, 1), generator=random)
    rows = (down + torch.arange(height))[:, None, :, None]
    columns = (right + torch.arange(width))[:, None, None, :]
    shown = images[torch.arange(count)[:, None, None, None], torch.arange(3)[:, None, None], rows, columns]
    return shown if size == height else interpolate(shown, size=(size, size), mode="bilinear", antialias=True)


def settings(arguments: argparse.Namespace) -> dict[str, str]:
    """What a checkpoint must have been made with."""
    names = ("sizes", "learning_rate", "batch_size", "bf16", "seed")
    return {name: str(value if name != "sizes" else [*value]) for name in names for value in [getattr(arguments, name)]}


def keep(model, optimizer, checkpoint, metadata) -> None:
    """Write what `resume` reads: the network, the momentum of each of its weights, and how it was trained."""
    momentum = {
        f"{_MOMENTUM}{name}": optimizer.state[weight]["momentum_buffer"].contiguous()
        for name, weight in model.named_parameters()
    }
    with atomic_folder(checkpoint.parent) as draft:
        save_file({**weights_of(model), **momentum}, draft / checkpoint.name, metadata)


def weights_of(model) -> dict[str, Tensor]:
    """A state dict in the order of memory that safetensors has; in training, channels are last."""
    return {name: value.contiguous() for name, value in model.state_dict().items()}


def resume(model, optimizer, checkpoint, expected) -> int:
    """Put a network and its optimizer where `keep` left them; the number of epochs that are done."""
    with safe_open(checkpoint, "pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    differing = [f"{name} {metadata[name]}, not {value}" for name, value in expected.items() if metadata[name] != value]
    if differing:
        raise SystemExit(f"{checkpoint} was trained with {'; '.join(differing)}: delete it, or give what it has.")
    model.load_state_dict({name: value for name, value in state.items() if not name.startswith(_MOMENTUM)})
    for name, weight in model.named_parameters():
        optimizer.state[weight]["momentum_buffer"] = state[f"{_MOMENTUM}{name}"]
    print(f"going on after epoch {metadata['epochs']}, from {checkpoint}", flush=True)
    return int(metadata["epochs"])


if __name__ == "__main__":
    main()
