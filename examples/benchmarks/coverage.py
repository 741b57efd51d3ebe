"""Coverage: for how many model types of transformers groups are found and proved, on tiny models of default configs.

    python examples/benchmarks/coverage.py --out coverage.jsonl
    python examples/benchmarks/coverage.py --out coverage.jsonl --types bert llama

One process per type, one JSON line per type; types that are in the file are not run again. Nothing is downloaded.
"""

import argparse
import json
import os
import random
import resource
import signal
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers
from tiny_models.measures import measured
from tiny_models.models import tiny_model
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

SECONDS, BYTES = 120, 10 << 30
BAR = ("attention", "ffn")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=in_any_order(MODEL_MAPPING_NAMES))
    parser.add_argument("--out", type=Path, default=Path.home() / ".cache/optimum-optin/coverage.jsonl")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of a processor, for each type")
    parser.add_argument("--only-run", action="store_true", help="whether a type runs, and nothing more")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity(50)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = {each["type"] for each in read(arguments.out)}
    tiny_model("bert")  # what all types import is imported once
    for model_type in arguments.types:
        if model_type not in done:
            result = in_a_process(model_type, arguments.seconds, arguments.only_run)
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(model_type, result["stage"], result.get("error", "")[:200], flush=True)
    print_summary(read(arguments.out))


def in_any_order(types):
    """Always the same order, that of no alphabet: what is done when a run is stopped early is a fair sample."""
    types = sorted(types)
    random.Random(0).shuffle(types)
    return types


def read(path):
    """The results of a file, the last of each type."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return list({result["type"]: result for result in map(json.loads, lines)}.values())


def in_a_process(model_type, seconds, only_run):
    """What `measured` returns, from a process of its own that may be killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        signal.signal(signal.SIGPROF, _too_long)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        with os.fdopen(writing, "w") as pipe:
            pipe.write(json.dumps(measured(model_type, only_run)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"type": model_type, "stage": "killed", "error": f"status {status}"}


def _too_long(*_):
    raise TimeoutError("out of time")


def print_summary(results):
    """Counts of types, and of the groups that should be there."""
    print(dict(Counter(result["stage"] for result in results)), "of", len(results))
    judged = [result for result in results if "expected" in result]
    for kinds in (BAR, ("attention",), ("ffn",), ("conv",), ("experts",), ("state space",)):
        members = [[each for each in result["expected"] if each["kind"] in kinds] for result in judged]
        members = [each for each in members if each]
        counts = {
            f"{which.__name__} {what}": sum(which(each[what] for each in some) for some in members)
            for what in ("found", "proved")
            for which in (all, any)
        }
        print(f"{' and '.join(kinds)}: {len(members)} types have them: {counts}")
    proved = [each for each in judged if any(group["cut"] is None for group in each.get("groups", {}).values())]
    print("any group of any role proved:", len(proved), "of", len(judged))
    print("MACs fell:", sum(result["macs"][1] < result["macs"][0] for result in results if "macs" in result))


if __name__ == "__main__":
    sys.exit(main())
