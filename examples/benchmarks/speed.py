"""What scoring costs, side by side in one run: (a) exhaustive, (b) exhaustive with prefix caching, (c) Gauss-Newton.

    python examples/benchmarks/speed.py reactions     # a real 12 x 256 BERT
    python examples/benchmarks/speed.py bert-base     # BERT-base shape, random weights: time and peak memory

(a) runs the whole model on the calibration set once per unit, as the paper does; (b) is `scorer="exact"`; (c) is
`scorer="gauss_newton"`. (a) and (b) are extrapolated from a sample of units, timed in turn; (c) is run whole, with the
default settings. All use the same calibration batches.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from transformers import BertConfig, BertForSequenceClassification

from optimum_optin import OptinConfig, find_groups, masked
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.passes.calibration import calibrate
from optimum_optin.passes.hooks import recorded
from optimum_optin.running.freezing import frozen
from optimum_optin.scoring import score_exact, score_gauss_newton

sys.path.insert(0, str(Path(__file__).parents[1]))
from demo_models import load_reaction_bert, load_reactions

TOKENS = 32  # of each random sample at BERT-base shape; SST-2 sentences have 25 on average


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["reactions", "bert-base"])
    parser.add_argument("--units", type=int, default=3, help="units timed exhaustively (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs/speed"))
    arguments = parser.parse_args()

    model, data, tokenizer = load(arguments.model)
    config = OptinConfig()
    batches = calibration_batches(data, model, tokenizer, num_samples=config.num_samples, batch_size=config.batch_size)
    calibration, groups = calibrate(model, batches), find_groups(model)
    units = sum(group.units for group in groups)
    samples = sum(len(batch["input_ids"]) for batch in batches)
    result = {"model": arguments.model, "units": units, "samples": samples, "threads": torch.get_num_threads()}

    with frozen(model):
        before = psutil.Process().memory_info().rss
        started = time.perf_counter()
        score_gauss_newton(model, groups, calibration, config)
        sketched = time.perf_counter() - started
        result["memory"] = memory(model, groups, batches, peak_bytes() - before)
        full = exhaustive_seconds_per_unit(model, groups, batches, arguments.units)
        cached = cached_seconds(model, groups, calibration, config)
    layers = len(groups.layers)
    result["seconds"] = {"exhaustive": full * units, "exact, prefix cached": cached, "gauss_newton": sketched}
    result["sample_forwards"] = {
        "exhaustive": samples * units,
        # A unit of layer i runs layers i to the last.
        "exact, prefix cached": round(samples * units * (layers + 1) / (2 * layers)),
        # A backward pass counts as two forward passes; there are two per probe, trajectory and output.
        "gauss_newton": config.probes * config.batch_size * 5,
    }
    for kind in ("seconds", "sample_forwards"):
        figures = result[kind]
        result[f"{kind}_ratio"] = figures["exhaustive"] / figures["gauss_newton"]
    print(json.dumps(result, indent=2))
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{arguments.model}.json").write_text(json.dumps(result, indent=2) + "\n")


def load(name):
    """Model, calibration data and tokenizer."""
    if name == "reactions":
        model, tokenizer = load_reaction_bert()
        return model, [row["text"] for row in load_reactions()[1]], tokenizer
    torch.manual_seed(0)
    ids = torch.randint(1000, 30000, (OptinConfig().num_samples, TOKENS))
    return BertForSequenceClassification(BertConfig()).eval(), [{"input_ids": row.tolist()} for row in ids], None


@torch.no_grad()
def exhaustive_seconds_per_unit(model, groups, batches, count):
    """Median time of one unit's pass over all batches; sampled units are spread over the groups."""
    times = []
    layers = groups.layers
    for group in groups.members[:: max(1, len(groups) // count)][:count]:
        mask = torch.ones(group.units)
        mask[group.units // 2] = 0
        started = time.perf_counter()
        with masked(model, [group], {group.key: mask}), recorded(model, layers):
            for batch in batches:
                model(**batch, use_cache=False)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def cached_seconds(model, groups, calibration, config):
    """Time of `scorer="exact"`, extrapolated from one batch in eight and a few units of every group."""
    part = calibration.part(range(0, len(calibration), 8))
    few = 2
    sampled = replace(groups, members=tuple(_first_units(group, few) for group in groups))
    started = time.perf_counter()
    score_exact(model, sampled, part, config)
    elapsed = time.perf_counter() - started
    return elapsed * len(calibration) / len(part) * sum(group.units for group in groups) / (few * len(groups))


def _first_units(group, count):
    # A group of fewer, wider units masks the same columns at the same cost.
    return replace(group, units=count, width=group.units * group.width // count)


def memory(model, groups, batches, grown):
    """Bytes: weights, one minibatch's saved activations, and what scoring added to the process's peak."""
    largest = max(batches, key=lambda batch: batch["input_ids"].numel())
    saved = {}

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    masks = {group.key: torch.ones(len(largest["input_ids"]), group.units, requires_grad=True) for group in groups}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), masked(model, groups, masks):
        outputs = model(**largest, use_cache=False)
    activations = sum(size for place, size in saved.items() if place not in weights)
    del outputs
    size = sum(parameter.nbytes for parameter in model.parameters())
    return {
        "weights": size,
        "minibatch_activations": activations,
        "scoring_peak_above_loaded_model": grown,
        "weights_and_peak_over_weights": (size + grown - activations) / size,
    }


def peak_bytes():
    """The process's peak resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
