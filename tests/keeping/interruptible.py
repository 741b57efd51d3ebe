"""What can be interrupted: name -> a function that makes the work, and what it must leave alone."""

import torch
from tiny import tiny_model, tiny_samples
from torch.utils.data import DataLoader
from toys import TorchEncoder, perturbed

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.tracing import cache


def encoder():
    """A classifier of texts, in training mode, some weights frozen, with a hook of its user's."""
    model = tiny_model("bert").train()
    next(model.parameters()).requires_grad_(False)
    model.bert.encoder.layer[0].eval()
    model.bert.register_forward_hook(lambda *_: None)
    return model, DataLoader(
        [{"input_ids": torch.arange(5 + number, 15 + number)} for number in range(8)],
        batch_size=2,
        shuffle=True,
        generator=torch.Generator().manual_seed(3),
    )


def scoring():
    model, samples = encoder()
    things = {"model": model, "loader": samples}
    return lambda: OptinPruner(model).score(samples, OptinConfig(probes=4)), things


def pruning():
    model, samples = encoder()
    things = {"model": model, "loader": samples}
    return lambda: OptinPruner(model).prune(samples, OptinConfig(flops=0.5, probes=4)), things


def tracing():
    """A plain module of PyTorch's own layers, traced, scored and pruned."""
    model = perturbed(TorchEncoder()).train()
    batches = [torch.randint(0, 40, (1, 9), generator=torch.Generator().manual_seed(each)) for each in range(6)]

    def work():
        cache.forget()
        OptinPruner.from_model(model, batches[0]).prune(batches, OptinConfig(flops=0.6, probes=4))

    return work, {"model": model}


def images():
    """A ViT that merges tokens."""
    model = tiny_model("vit").train()
    samples = tiny_samples(8, model=model)
    config = OptinConfig(flops=0.5, probes=4, merging="auto", scorer="gauss_newton")
    return lambda: OptinPruner(model).prune(samples, config), {"model": model}


CASES = {each.__name__: each for each in (scoring, pruning, tracing, images)}
