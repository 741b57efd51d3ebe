"""Processor seconds of scoring and cutting by stage, for shapes of several sizes: what does not scale shows here.

    OMP_NUM_THREADS=1 python examples/benchmarks/stages.py bert-base              # 12 layers, 512 samples of 32 tokens
    OMP_NUM_THREADS=1 python examples/benchmarks/stages.py bert-base --layers 2 --samples 64

Weights and tokens are random: they cost what real ones do. Loops over batches and probes grow with the samples; orders
of removal and the solving of regressions do not. Processor time is that of all threads.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from optimum_optin import OptinConfig, OptinPruner

SHAPES = {"minilm": (6, 384, 12), "bert-base": (12, 768, 12), "bert-large": (24, 1024, 16), "1b": (2, 2048, 32)}


class Clock:
    """Processor seconds of every loop, told by its steps; what lies between loops goes to the one before."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._name, self._since = "", time.process_time()

    def __call__(self, name, done, total):
        self._count()
        self._name = name

    def begin(self, name):
        self(name, 0, 0)

    def end(self):
        self._count()
        return {name: round(seconds, 2) for name, seconds in self.seconds.items()}

    def _count(self):
        now = time.process_time()
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0) + now - self._since
        self._since = now


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--layers", type=int, help="fewer or more than the shape has")
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--samples", type=int, default=OptinConfig().num_samples)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path("outputs/stages"))
    arguments = parser.parse_args()
    layers, width, heads = SHAPES[arguments.shape]
    layers = arguments.layers or layers
    torch.manual_seed(0)
    shape = BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width
    )
    model = BertForSequenceClassification(shape).eval()
    data = [{"input_ids": ids} for ids in torch.randint(1000, 30000, (arguments.samples, arguments.tokens)).tolist()]
    probes = min(OptinConfig().probes, 2 * arguments.samples // OptinConfig().batch_size)  # one for every minibatch
    pruner = OptinPruner(model, config=OptinConfig(flops=arguments.flops, num_samples=arguments.samples, probes=probes))
    clock = Clock()
    clock.begin("find and prove")
    pruner.check()
    clock.begin("score, beside its loops")
    scores = pruner.score(data, callback=clock)
    clock.begin("cut, beside its loops")
    pruner.prune(scores=scores, callback=clock)
    result = {
        "shape": arguments.shape,
        "layers": layers,
        "samples": arguments.samples,
        "tokens": arguments.tokens,
        "threads": torch.get_num_threads(),
        "processor_seconds": clock.end(),
        "wall_seconds": {name: round(seconds, 2) for name, seconds in pruner.report.seconds.items()},
    }
    print(json.dumps(result, indent=2))
    arguments.output.mkdir(parents=True, exist_ok=True)
    file = arguments.output / f"{arguments.shape}-{layers}-{arguments.samples}.json"
    file.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
