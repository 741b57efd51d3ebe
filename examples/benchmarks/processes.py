"""How much faster several processes score and cut than one, stage by stage, on a machine that need not be idle.

    python examples/benchmarks/processes.py reactions
    python -m torch.distributed.run --nproc-per-node 2 examples/benchmarks/processes.py reactions

Where processes wait for each other, each notes its processor time. The longest of their times between two such places,
summed over all, is what a stage would take with a core for each process and messages that take no time: its critical
path. Unlike wall-clock time, it does not depend on what else the machine does.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from speed import load

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.running.processes import is_main, process_count, state

_MEETINGS = ("all_reduce", "broadcast", "all_gather", "all_gather_object", "broadcast_object_list", "reduce", "barrier")


class Clock:
    """Processor time of this process between the places where it meets the others."""

    def __init__(self):
        self.spans: list[float] = []
        self._since = time.process_time()
        self._within = False
        for name in _MEETINGS if process_count() > 1 else ():
            setattr(torch.distributed, name, self._noted(getattr(torch.distributed, name)))

    def begin(self):
        self.spans, self._since = [], time.process_time()

    def end(self):
        """Seconds of the critical path, and of every process."""
        self._meet()
        spans = [self.spans]
        if process_count() > 1:
            spans = [None] * process_count()
            self._within = True
            torch.distributed.all_gather_object(spans, self.spans)
            self._within = False
        return sum(map(max, zip(*spans, strict=True))), [sum(each) for each in spans]

    def _meet(self):
        now = time.process_time()
        self.spans.append(now - self._since)
        self._since = now

    def _noted(self, collective):
        def call(*args, **kwargs):
            if self._within:  # one that is made of others
                return collective(*args, **kwargs)
            self._within = True
            self._meet()
            try:
                return collective(*args, **kwargs)
            finally:
                self._within = False

        return call


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["reactions", "bert-base"])
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--probes", type=int, default=OptinConfig().probes)
    parser.add_argument("--output", type=Path, default=Path("outputs/processes"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    state()
    model, data, tokenizer = load(arguments.model)
    config = OptinConfig(flops=arguments.flops, num_samples=arguments.samples, probes=arguments.probes)
    pruner = OptinPruner(model, tokenizer, config)
    pruner.check()
    clock, seconds = Clock(), {}
    clock.begin()
    scores = pruner.score(data)
    seconds["score"] = clock.end()
    clock.begin()
    pruner.prune(scores=scores)
    seconds["cut"] = clock.end()
    if is_main():
        result = {"model": arguments.model, "samples": arguments.samples, "processes": process_count()}
        for name, (path, own) in seconds.items():
            result[name] = {"critical path": round(path, 2), "processes": [round(each, 2) for each in own]}
        print(json.dumps(result, indent=2))
        arguments.output.mkdir(parents=True, exist_ok=True)
        file = arguments.output / f"{arguments.model}-{process_count()}.json"
        file.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
