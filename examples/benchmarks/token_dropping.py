"""Merging similar tokens against dropping those that the class token attends to least: equally many after each layer.

    python examples/benchmarks/token_dropping.py fashion-vit
    python examples/benchmarks/token_dropping.py cifar10-dinov2 --image-dir path/to/cifar10 --flops 0.8 0.65 0.5

Nothing else is pruned. Dropped tokens (EViT's choice of them, Liang et al. 2022) skip the layers that are left and come
back in the end as they were, as merged ones do; that costs what merging does, less its matching. Accuracy is of the
development images, which are train images.
"""

import argparse
from contextlib import ExitStack, contextmanager

import torch
from tasks import add_task_arguments, load_task

from optimum_optin.architectures.group import HEADS
from optimum_optin.discovery import find_groups, find_layers, key_projections
from optimum_optin.media.vision import image_tokens, usual_image
from optimum_optin.merging.hooks import merging
from optimum_optin.merging.schedule import constant_schedule
from optimum_optin.pricing.macs import token_costs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--flops", type=float, nargs="+", default=[0.8, 0.65, 0.5])
    arguments = parser.parse_args()

    task = load_task(arguments.model, hold_out=True, checkpoint=arguments.checkpoint, image_dir=arguments.image_dir)
    model = task.pruner.model
    print(f"dense: {task.metric} {task.development(model):.1f}", flush=True)
    costs = token_costs(model, find_groups(model), image_tokens(model, usual_image(model)))
    for flops in arguments.flops:
        schedule = constant_schedule(costs, flops * sum(cost[-1] for cost in costs.layers.values()))
        with merging(model, find_groups(model), schedule):
            merged = task.development(model)
        with dropping(model, schedule):
            dropped = task.development(model)
        print(f"{flops}, {max(schedule.merges.values())} each: merged {merged:.1f}, dropped {dropped:.1f}", flush=True)


@contextmanager
def dropping(model, schedule):
    """Run the model as if the tokens that a schedule merges were dropped instead; undone on exit."""
    keys = key_projections(model)
    heads = {group.layer: group for group in find_groups(model) if group.role == HEADS}
    dropper = Dropper(schedule.protected)
    with ExitStack() as stack:
        for layer, path in find_layers(model).items():
            seen = {}
            query = next(each.path for each in heads[layer].producers if each.path.rpartition(".")[2].startswith("q"))
            for name, projection in (("query", query), ("key", keys[layer])):
                hook = keep(seen, name)
                stack.callback(model.get_submodule(projection).register_forward_hook(hook).remove)
            leave = dropper.after(schedule.merges.get(layer, 0), seen, heads[layer].width, layer == list(heads)[-1])
            stack.callback(model.get_submodule(path).register_forward_hook(leave).remove)
        yield


def keep(seen, name):
    """A forward hook that keeps a module's output."""
    return lambda module, args, output: seen.update({name: output})


class Dropper:
    """What happened to the tokens of the batch that is on its way.

    Args:
        protected: tokens at the beginning that stay; the first is the class token.
    """

    def __init__(self, protected):
        self.protected = protected
        self.all = self.places = None

    def after(self, count, seen, width, last):
        """The forward hook of a layer: drop so many tokens, or bring all back."""

        def leave(module, args, output):
            if self.all is None:
                self.all = output.clone()
                self.places = torch.arange(output.shape[1]).expand(len(output), -1)
            self.all.scatter_(1, wide(self.places, output), output)
            if last:
                whole, self.all = self.all, None
                return whole
            if not count:
                return output
            kept = self.attended(seen, width, output.shape[1] - count)
            self.places = self.places.gather(1, kept)
            return output.gather(1, wide(kept, output))

        return leave

    def attended(self, seen, width, count):
        """The `count` tokens that the class token attends to most, mean over heads, in their order."""
        query, key = (seen[name].unflatten(-1, (-1, width)).transpose(1, 2) for name in ("query", "key"))
        attention = (query[:, :, :1] @ key.transpose(2, 3) * width**-0.5).softmax(-1).mean(1)[:, 0]
        attention[:, : self.protected] = torch.inf
        return attention.topk(count).indices.sort(1).values


def wide(places, tokens):
    """Places of tokens, shape (batch, places), as `gather` wants them."""
    return places[:, :, None].expand(-1, -1, tokens.shape[-1])


if __name__ == "__main__":
    main()
