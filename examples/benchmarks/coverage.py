"""Coverage: for how many model types of transformers groups are found and proved, on tiny models of default configs.

    python examples/benchmarks/coverage.py --out coverage.jsonl
    python examples/benchmarks/coverage.py --out coverage.jsonl --types bert llama
    python examples/benchmarks/coverage.py --out coverage.jsonl --summary docs/coverage.json

One process per type, one JSON line per type; types that are in the file are not run again. Nothing is downloaded.
From the summary, docs/make_supported_models.py writes the page of supported models.
"""

import argparse
import datetime
import json
import os
import platform
import random
import resource
import signal
import statistics
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers
from tiny_models.measures import measured
from tiny_models.models import tiny_model
from tiny_models.summary import BAR, summarised
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

import optimum_optin

SECONDS, BYTES = 120, 10 << 30


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=in_any_order(MODEL_MAPPING_NAMES))
    parser.add_argument("--out", type=Path, default=Path.home() / ".cache/optimum-optin/coverage.jsonl")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of a processor, for each type")
    parser.add_argument("--only-run", action="store_true", help="whether a type runs, and nothing more")
    parser.add_argument("--summary", type=Path, help="write a short form of the results here, and run nothing")
    arguments = parser.parse_args()
    if arguments.summary:
        return write_summary(read(arguments.out), arguments.summary)
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
    """How many types came how far."""
    print(dict(Counter(result["stage"] for result in results)), "of", len(results))
    lines = [summarised(result) for result in results]
    print("proved in every group that should be in layers:", sum(is_proved(line) for line in lines))
    print("saved, loaded and equal:", sum(line.get("loaded", False) for line in lines))


def is_proved(line):
    """Whether a type has groups that should be in its layers, and all are proved."""
    counts = [line["expected"][kind] for kind in BAR if kind in line.get("expected", {})]
    return bool(counts) and all(wanted == proved for wanted, _, proved in counts)


def write_summary(results, path):
    """Write one line per type, and what they were measured with."""
    about = {
        "date": str(datetime.date.today()),
        "versions": {each.__name__: each.__version__ for each in (optimum_optin, transformers, torch)},
        "machine": f"{platform.machine()}, {platform.system()}, one thread",
        "seconds": statistics.median(result["seconds"] for result in results if "seconds" in result),
    }
    lines = [f"{json.dumps(result['type'])}: {json.dumps(summarised(result))}" for result in by_name(results)]
    types = ",\n".join(lines)
    path.write_text(f'{{"about": {json.dumps(about)},\n"types": {{\n{types}\n}}}}\n', encoding="utf-8")


def by_name(results):
    """Results in the order of their types."""
    return sorted(results, key=lambda result: result["type"])


if __name__ == "__main__":
    sys.exit(main())
