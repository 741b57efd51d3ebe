"""Coverage: for how many model types of transformers groups are found, on tiny models of their default configs.

    python examples/benchmarks/coverage.py --out coverage.jsonl
    python examples/benchmarks/coverage.py --out coverage.jsonl --types bert llama

One process per type, one JSON line per type; types that are in the file are not run again. Nothing is downloaded.
"""

import argparse
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers
from tiny_models.judge import expected_groups
from tiny_models.models import NotRun, attempt, tiny_inputs, tiny_model
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from optimum_optin.tracing import trace

SECONDS, BYTES = 90, 10 << 30


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=sorted(MODEL_MAPPING_NAMES))
    parser.add_argument("--out", type=Path, default=Path.home() / ".cache/optimum-optin/coverage.jsonl")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="for each type")
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
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(seconds)
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


def measured(model_type, only_run):
    """All that is measured of one model type; `stage` says how far it came."""
    result = {"type": model_type, "stage": "build"}
    try:
        model = tiny_model(model_type)
        result |= {"parameters": sum(each.numel() for each in model.parameters()), "stage": "run"}
        inputs = tiny_inputs(model)
        result["inputs"] = {name: list(value.shape) for name, value in inputs.items()}
        start = time.perf_counter()
        attempt(model, inputs)
        result |= {"pass_seconds": round(time.perf_counter() - start, 4), "stage": "ran" if only_run else "judge"}
        if only_run:
            return result
        expected = expected_groups(model, inputs)
        result["expected"] = [{"kind": e.kind, "written": e.written, "read": e.read, "found": False} for e in expected]
        result["stage"] = "trace"
        start = time.perf_counter()
        found = trace(model, inputs)
        result |= {"trace_seconds": round(time.perf_counter() - start, 2), "passes": found.passes, "stage": "traced"}
        result["groups"] = [
            {
                "module": group.module,
                "units": group.units,
                "writes": [[each.tensor, each.dim, each.indices.shape[1]] for each in group.writes],
                "reads": [[each.tensor, each.dim, each.indices.shape[1]] for each in group.reads],
            }
            for group in found.groups
        ]
        result["left_out"] = [[list(each.tensors), each.reason] for each in found.left_out]
        for each in result["expected"]:
            each["found"] = is_found(each, result["groups"])
    except NotRun as error:
        result["error"] = str(error)
    except BaseException as error:  # whatever a model raises
        result["error"] = f"{type(error).__name__}: {error}"[:500]
        result["traceback"] = traceback.format_exc()[-1500:]
    return result


def is_found(expected, groups):
    """Whether a group is read by the weight and writes one of those before it.

    Attention heads that share keys and values with all others write queries alone.
    """
    return any(
        expected["read"] in {each[0] for each in group["reads"]}
        and (expected["kind"] == "attention" or set(expected["written"]) & {each[0] for each in group["writes"]})
        for group in groups
    )


def print_summary(results):
    """Counts of types, and of the groups that should be there."""
    stages = Counter(result["stage"] for result in results)
    traced = [result for result in results if result["stage"] == "traced"]
    print(dict(stages), "of", len(results))
    for kinds in (("attention", "ffn"), ("attention",), ("ffn",), ("conv",), ("experts",), ("state space",)):
        with_any = [
            [each["found"] for each in result["expected"] if each["kind"] in kinds]
            for result in traced
            if any(each["kind"] in kinds for each in result["expected"])
        ]
        every, some = sum(map(all, with_any)), sum(map(any, with_any))
        print(f"{' and '.join(kinds)}: of {len(with_any)} types that have them, all found in {every}, any in {some}")
    print("no group at all:", *(result["type"] for result in traced if not result["groups"]))
    print("types without a group that is expected:", *(r["type"] for r in traced if not r["expected"]))


if __name__ == "__main__":
    sys.exit(main())
