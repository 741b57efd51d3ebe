"""Peak memory and time of pruning a language model of real size, stage by stage.

    python examples/benchmarks/memory.py                        # the shape of Llama-3.2-1B, bfloat16, 16 x 256 tokens
    python examples/benchmarks/memory.py --layers 4             # fewer layers of the same
    python examples/benchmarks/memory.py --scale 0.5            # half of its widths
    python examples/benchmarks/memory.py --offload              # with weights that Accelerate leaves on disk
    python examples/benchmarks/memory.py --drawn                # cut and refit alone, by scores that are drawn

Weights and tokens are random: they cost what real ones do. A stage's peak is the largest resident memory of the
process while it runs, what was there before included. Pages of files are part of it, though the system drops them when
it needs the room; what is anonymous, it cannot drop. Linux only.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from optimum_optin import OptinConfig, OptinPruner, register_scorer

EVERY = 0.02  # seconds between two looks at what has no high-water mark


def resident(name: str) -> float:
    """A line of the process's status, such as its peak `VmHWM`, in GB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024 / 1e9


@contextmanager
def most_seen(name: str) -> Iterator[list[float]]:
    """The largest of a line of the status, by a look at it every now and then, as the one number of a list."""
    seen, over = [resident(name)], threading.Event()

    def look():
        while not over.wait(EVERY):
            seen[0] = max(seen[0], resident(name))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@contextmanager
def stage(name: str, found: dict):
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    started = time.perf_counter()
    with most_seen("RssAnon") as anonymous:
        yield
    found[name] = {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_gb": round(resident("VmHWM"), 2),
        "anonymous_gb": round(anonymous[0], 2),
    }
    print(name, json.dumps(found[name]), flush=True)


@register_scorer("drawn")
def drawn_scores(model, groups, calibration, config):
    generator = torch.Generator().manual_seed(0)
    return {"output": {group.key: torch.rand(group.units, generator=generator) for group in groups}}


def offloaded(model: LlamaForCausalLM, folder: Path) -> LlamaForCausalLM:
    """The same model, saved and loaded again with all of its weights on disk."""
    model.save_pretrained(folder / "dense")
    options = {"dtype": model.dtype, "device_map": {"": "disk"}, "offload_folder": folder / "offloaded"}
    return type(model).from_pretrained(folder / "dense", **options).eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--scale", type=float, default=1.0, help="of all widths and of the vocabulary")
    parser.add_argument("--flops", type=float, default=0.8)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--offload", action="store_true", help="leave the weights on disk, in the folder of TMPDIR")
    parser.add_argument("--drawn", action="store_true", help="draw the scores, to measure cut and refit alone")
    parser.add_argument("--out", type=Path, help="append one JSON line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    heads = max(4, round(32 * arguments.scale) // 4 * 4)
    shape = LlamaConfig(
        hidden_size=64 * heads,
        num_hidden_layers=arguments.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 4,
        head_dim=64,
        intermediate_size=256 * heads,
        vocab_size=round(128_256 * arguments.scale),
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    found = {"before_gb": round(resident("VmRSS"), 2)}
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, arguments.dtype))
    model = LlamaForCausalLM(shape).eval()
    torch.set_default_dtype(torch.float32)
    found["weights_gb"] = round(sum(each.nbytes for each in model.parameters()) / 1e9, 2)
    if arguments.offload:
        model = offloaded(model, folder)
    found["loaded_gb"] = round(resident("VmRSS"), 2)
    print(json.dumps(found), flush=True)
    config = OptinConfig(
        flops=arguments.flops,
        num_samples=arguments.samples,
        batch_size=arguments.batch_size,
        search="ranked",
        scorer="drawn" if arguments.drawn else OptinConfig.scorer,
        probes=1,  # one for every minibatch
    )
    drawn = torch.randint(shape.vocab_size, (arguments.samples, arguments.tokens)).tolist()
    data = [{"input_ids": tokens, "attention_mask": [1] * len(tokens)} for tokens in drawn]
    pruner = OptinPruner(model, config=config)
    with stage("find and prove", found):
        pruner.check()
    with stage("score", found):
        scores = pruner.score(data)
    with stage("prune", found):
        pruner.prune(scores=scores)
    found["seconds"] = pruner.report.seconds
    found["threads"] = torch.get_num_threads()
    print(json.dumps(found))
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**vars(arguments), "out": None, **found}) + "\n")


if __name__ == "__main__":
    main()
