"""A causal language model: perplexity and greedy text against block parameters kept, for several ways to choose units.

    python examples/smollm2.py                                                # once
    python examples/benchmarks/causal.py --data path/to/wikitext2
    python examples/benchmarks/causal.py --data ... --budgets 0.9 0.8 0.7 --methods surgeon flap --seeds 0 1 2

Calibration blocks are drawn from valid.txt by the seed. Every method keeps the same share of the parameters of all
heads and neurons, within one unit. Each is measured as it is and with our refit:

- surgeon: our scores and search (`--search`), saved, and loaded again before it is measured.
- random, magnitude: the same share of every layer; at random, or by the norm of what the consumers read.
- wanda-sp: the same share of every layer, by the sum of |w| times the norm of the inputs (Sun et al. 2023, in the
  structured form of An et al. 2023).
- flap: over all layers at once, by the variance of the inputs times the squared norm of their columns, standardised
  within each layer; without our refit, its own bias takes over the mean of what is gone (An et al. 2023).
- shortgpt: whole layers, those first whose output is most like their input (Men et al. 2024); it is not refitted.
- slicegpt: fewer channels between the layers, by PCA (Ashkboos et al. 2024; slicegpt.py beside this file). Its shortcut
  matrices count as parameters of the blocks, as in the paper: at 0.95, SmolLM2 keeps 474 of 576 channels. It has no
  units that could be refitted.

Perplexity is that of the first `--blocks` blocks of 512 tokens of test.txt; what is written goes on from the beginnings
of eight of these. One line for each cut; `kept` is the share of the blocks' parameters, norms included.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from channel_rankings import masks_within
from slicegpt import sliced, width_within
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from optimum_optin import OptinConfig, OptinPruner, Scores
from optimum_optin.architectures.group import Groups, Masks
from optimum_optin.compensation.refit import refit
from optimum_optin.editing.surgery import rewrite
from optimum_optin.evaluation.comparison import evaluate_model
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.inputs.encoding import running_tokens
from optimum_optin.passes.calibration import Calibration, calibrate, dense_passes
from optimum_optin.passes.hooks import observed
from optimum_optin.pipeline import prune_models
from optimum_optin.readiness import proved_groups
from optimum_optin.running.forward import call_model
from optimum_optin.running.freezing import frozen
from optimum_optin.search.candidates import ranked
from optimum_optin.text_tasks.continuations import compare_continuations, written

sys.path.insert(0, str(Path(__file__).parents[1]))  # the examples beside this folder
from smollm2 import CACHE

BLOCK = 512
METHODS = ("surgeon", "random", "magnitude", "wanda-sp", "flap", "shortgpt", "slicegpt")
REFITTED = frozenset(METHODS) - {"shortgpt", "slicegpt"}
REFITS = {"both": (False, True), "with": (True,), "without": (False,)}
PROMPTS, PROMPT = 8, 32


class Inputs:
    """What the consumers of all groups read on the calibration data: moments of each of their inputs."""

    @torch.no_grad()
    def __init__(self, model: nn.Module, groups: Groups, calibration: Calibration):
        paths = [each.path for group in groups for each in group.consumers]
        sums = dict.fromkeys(paths, 0.0)
        squares, rows = dict(sums), 0
        self.influence = dict.fromkeys(groups.layers, 0.0)
        with frozen(model):
            for batch in calibration:
                with observed(model, [*paths, *groups.layers.values()]) as seen:
                    call_model(model, batch)
                rows += batch["input_ids"].numel()
                for path in paths:
                    tokens = seen[path].input.flatten(0, -2).double()
                    sums[path] = sums[path] + tokens.sum(0)
                    squares[path] = squares[path] + tokens.square().sum(0)
                for name, path in groups.layers.items():
                    likeness = torch.cosine_similarity(seen[path].input, first(seen[path].output), dim=-1)
                    self.influence[name] += float((1 - likeness).sum())
        self.mean = {path: sums[path] / rows for path in paths}
        self.norm = {path: squares[path].sqrt() for path in paths}
        self.variance = {path: squares[path] / rows - self.mean[path].square() for path in paths}


def first(output):
    return output[0] if isinstance(output, tuple) else output


def by_units(columns: Callable[[nn.Linear, str], Tensor]) -> Callable:
    """An importance of every unit: the sum of those of the columns that its consumer reads it by."""

    def importances(model, groups, inputs, generator):
        found = {}
        for group in groups:
            (consumer,) = group.consumers
            values = columns(model.get_submodule(consumer.path), consumer.path, inputs)
            found[group.key] = values.view(group.units, -1).sum(1)
        return found

    return importances


def at_random(model, groups, inputs, generator):
    return {group.key: torch.rand(group.units, generator=generator, dtype=torch.float64) for group in groups}


def fluctuation(linear: nn.Linear, path: str, inputs: Inputs) -> Tensor:
    return inputs.variance[path] * linear.weight.double().square().sum(0)


def standardised(importances: Callable) -> Callable:
    def found(*arguments):
        raw = importances(*arguments)
        return {key: (each - each.mean()) / each.std().clamp_min(1e-12) for key, each in raw.items()}

    return found


# method -> importances, and whether every layer keeps the same share
RANKINGS: Mapping[str, tuple[Callable, bool]] = {
    "random": (at_random, True),
    "magnitude": (by_units(lambda linear, path, inputs: linear.weight.double().square().sum(0)), True),
    "wanda-sp": (by_units(lambda linear, path, inputs: linear.weight.double().abs().sum(0) * inputs.norm[path]), True),
    "flap": (standardised(by_units(fluctuation)), False),
}


class Harness:
    """One seed's calibration data, and what all methods share."""

    def __init__(self, pruner: OptinPruner, text: str, config: OptinConfig, prompts: Tensor):
        self.pruner, self.model, self.config, self.prompts = pruner, pruner.model, config, prompts
        options = {"num_samples": config.num_samples, "batch_size": config.batch_size, "block_size": config.block_size}
        self.text = text
        batches = calibration_batches([text], self.model, pruner.processor, seed=config.seed, **options)
        self.calibration = calibrate(self.model, batches)

    @cached_property
    def groups(self) -> Groups:
        return proved_groups(self.model, self.config)

    @cached_property
    def inputs(self) -> Inputs:
        return Inputs(self.model, self.groups, self.calibration)

    @cached_property
    def sizes(self) -> Mapping[str, float]:
        """Parameters of a unit of each group."""
        return {group.key: self._unit_size(group) for group in self.groups}

    @cached_property
    def scores(self) -> Scores:
        """Our scores, which bring along what every refit goes by."""
        found = self.pruner.score([self.text], self.config)
        print(f"seed {self.config.seed}: scores took {found.seconds:.0f} s", flush=True)
        return found

    @cached_property
    def starts(self) -> list:
        """What refits go by."""
        scored = vars(self).get("scores")  # if there are any, they ran these passes
        calibration = self.calibration.knowing(scored and scored.calibration)
        return dense_passes(self.model, self.groups, calibration, self.config)

    def _unit_size(self, group) -> float:
        parameters = dict(self.model.named_parameters())
        parts = [part for part in (*group.cut.reads, *group.cut.writes) if part.tensor in parameters]
        numbers = {part.tensor: parameters[part.tensor].numel() for part in parts}
        return sum(numbers.values()) / group.units  # every part is all of its tensor, as in Llama

    def share(self, masks: Masks) -> float:
        """The share of the units' parameters that masks keep."""
        dense = sum(self.sizes[group.key] * group.units for group in self.groups)
        return sum(self.sizes[key] * int(mask.sum()) for key, mask in masks.items()) / dense

    def ours(self, budget: float) -> float:
        """The share of FLOPs at which our search keeps this share of the parameters."""
        low, high = 0.05, 1.0
        for _ in range(16):
            middle = (low + high) / 2
            masks = ranked(self.model, self.groups, self.scores, replace(self.config, flops=middle)).masks
            low, high = (middle, high) if self.share(masks) <= budget else (low, middle)
        return low

    def masks(self, method: str, budget: float) -> Masks:
        importances, everywhere = RANKINGS[method]
        generator = torch.Generator().manual_seed(self.config.seed)
        found = importances(self.model, self.groups, self.inputs, generator)
        return masks_within(budget, found, everywhere, self.share)

    def cuts(self, method: str, budgets: Sequence[float], refitted: bool) -> Iterator[tuple[PreTrainedModel, float]]:
        """The model of each budget, and the seconds that it took; ours are pruned in one walk."""
        if method == "surgeon":
            yield from self._pruned(budgets, refitted)
            return
        for budget in budgets:
            started = time.perf_counter()
            cut = self._cut(method, budget, refitted)
            yield cut, time.perf_counter() - started

    def _cut(self, method: str, budget: float, refitted: bool) -> PreTrainedModel:
        if method == "shortgpt":
            return self._shortened(budget)
        if method == "slicegpt":
            return sliced(self.model, list(self.calibration), width_within(self.model, budget))
        masks = self.masks(method, budget)
        cut = copy.deepcopy(self.model)
        rewrite(cut, self.groups, masks)
        if refitted:
            refit(self.model, [cut], self.groups, self.starts, masks=[masks])
        elif method == "flap":
            self._add_biases(cut, masks)
        return cut

    def _pruned(self, budgets: Sequence[float], refitted: bool) -> Iterator[tuple[PreTrainedModel, float]]:
        """Ours, each as it loads from disk."""
        changes = {} if refitted else {"compensation": "none", "search": "ranked"}
        configs = [replace(self.config, flops=self.ours(budget), **changes) for budget in budgets]
        calibration = self.scores.calibration
        found = prune_models(self.model, self.groups, self.scores, calibration, configs)
        for pruned in found:
            with tempfile.TemporaryDirectory() as folder:
                pruned.model.save_pretrained(folder)
                loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
            yield loaded, sum(pruned.seconds.values())

    def _shortened(self, budget: float) -> PreTrainedModel:
        """A copy without the layers that change their input least."""
        count = round((1 - budget) * len(self.groups.layers))
        gone = sorted(self.inputs.influence, key=self.inputs.influence.get)[:count]
        cut = copy.deepcopy(self.model)
        paths = {self.groups.layers[name] for name in gone}
        cut.model.layers = nn.ModuleList(
            layer for number, layer in enumerate(cut.model.layers) if f"model.layers.{number}" not in paths
        )
        for number, layer in enumerate(cut.model.layers):
            layer.self_attn.layer_idx = number  # its place in the cache
        cut.config.num_hidden_layers = len(cut.model.layers)
        return cut

    def _add_biases(self, cut: PreTrainedModel, masks: Masks) -> None:
        """FLAP's compensation, in place: what the consumers made of the mean of the inputs that are gone."""
        for group in self.groups:
            (consumer,) = group.consumers
            gone = ~masks[group.key].repeat_interleave(consumer.width)
            weight = self.model.get_submodule(consumer.path).weight.double()
            bias = weight[:, gone] @ self.inputs.mean[consumer.path][gone]
            cut.get_submodule(consumer.path).bias = nn.Parameter(bias.float(), requires_grad=False)

    def tokens_per_second(self, model: nn.Module, new: int = 48) -> float:
        """Decoding one text with a cache: the best of three runs."""
        with torch.no_grad():
            seconds = []
            for _ in range(3):
                started = time.perf_counter()
                written(model, self.prompts[:1], new)
                seconds.append(time.perf_counter() - started)
        return new / min(seconds)


def block_parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.model.layers.parameters())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of WikiText-2's valid.txt and test.txt")
    parser.add_argument("--model", type=Path, default=CACHE, help="(default: %(default)s)")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.95, 0.9, 0.8, 0.7, 0.6, 0.5])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", type=int, default=128, help="calibration blocks (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=512, help="of a calibration block (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rows", type=int, default=OptinConfig().rows)
    parser.add_argument("--search", choices=("measured", "ranked"), default="measured")
    parser.add_argument("--refit", choices=REFITS, default="both")
    parser.add_argument("--blocks", type=int, default=16, help="test blocks of 512 tokens (default: %(default)s)")
    parser.add_argument("--speed", action="store_true", help="time decoding, too")
    parser.add_argument("--out", type=Path, help="append one JSON line for each cut")
    arguments = parser.parse_args()
    dense = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    pruner = OptinPruner(dense, tokenizer)
    text = (arguments.data / "valid.txt").read_text(encoding="utf-8")
    tokens = running_tokens((arguments.data / "test.txt").read_text(encoding="utf-8"), tokenizer)
    prompts = torch.tensor(tokens).unfold(0, BLOCK, BLOCK)[:PROMPTS, :PROMPT]

    def measured(model):
        options = {"data_dir": arguments.data / "test.txt", "block_size": BLOCK, "max_samples": arguments.blocks}
        found = evaluate_model(model, tokenizer, "perplexity", **options)["metrics"]["perplexity"]
        return {"perplexity": found["value"], "error": found["error"]}

    print("dense:", json.dumps(measured(dense)), flush=True)
    for seed in arguments.seeds:
        config = OptinConfig(
            num_samples=arguments.samples,
            batch_size=arguments.batch_size,
            block_size=arguments.tokens,
            rows=arguments.rows,
            search=arguments.search,
            probes=1,  # the surgeon takes one for every minibatch at least
            seed=seed,
        )
        harness = Harness(pruner, text, config, prompts)
        for method in arguments.methods:
            for refitted in REFITS[arguments.refit] if method in REFITTED else (False,):
                cuts = harness.cuts(method, arguments.budgets, refitted)
                for budget, (cut, seconds) in zip(arguments.budgets, cuts, strict=True):
                    line = {"seed": seed, "method": method, "refit": refitted, "budget": budget}
                    line |= {"kept": block_parameters(cut) / block_parameters(dense)}
                    line |= {"seconds": round(seconds)} | measured(cut)
                    said = compare_continuations(dense, cut, [{"input_ids": prompts}])
                    line |= {"agreement": said.agreement, "log_likelihood": said.log_likelihood}
                    if arguments.speed:
                        line |= {"tokens_per_second": [harness.tokens_per_second(model) for model in (dense, cut)]}
                    print(json.dumps(line), flush=True)
                    if arguments.out:
                        with arguments.out.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
