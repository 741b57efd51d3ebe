"""From a trained model to a pruned one in ONNX and in int8: size, time and accuracy of dense, pruned, int8 and both.

    python examples/benchmarks/export_road.py reactions
    python examples/benchmarks/export_road.py sst2 --model outputs/glue/sst2 --glue-dir path/to/glue

Each of the four is an ONNX file that `export_model` wrote and checked. They are evaluated on the same rows, and timed
in turn on one batch of evaluation rows, one thread each (set OMP_NUM_THREADS=1, too). Calibration rows are no
evaluation rows. What is exported stays in --output, and is not exported again.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.exporting import OnnxSession, export_model
from optimum_optin.timing.hardware import hardware
from optimum_optin.timing.side_by_side import times_in_turn

sys.path.insert(0, str(Path(__file__).parents[1]))
from demo_models import load_reaction_bert, load_reactions, load_sst2


def reactions(arguments):
    """Dense model, tokenizer, rows to evaluate on and to calibrate on, and what a prediction must be."""
    model, tokenizer = load_reaction_bert()
    evaluation, calibration = load_reactions()
    superclass = torch.tensor([int(label.split(".")[0]) for _, label in sorted(model.config.id2label.items())])
    return model, tokenizer, evaluation, calibration, superclass


def sst2(arguments):
    """The same of a classifier of sentences."""
    model = AutoModelForSequenceClassification.from_pretrained(arguments.model).eval()
    evaluation, calibration = (
        [{"text": row["sentence"], "label": row["label"]} for row in load_sst2(split, arguments.glue_dir)]
        for split in ("dev", "train")
    )
    return model, AutoTokenizer.from_pretrained(arguments.model), evaluation, calibration, torch.arange(2)


TASKS = {"reactions": reactions, "sst2": sst2}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--model", type=Path, help="folder of the SST-2 classifier")
    parser.add_argument("--glue-dir", type=Path, help="folder of SST-2/*.tsv (default: the Hub)")
    parser.add_argument("--flops", type=float, default=0.6)
    parser.add_argument("--samples", type=int, default=512, help="calibration rows (default: %(default)s)")
    parser.add_argument("--rows", type=int, help="evaluation rows (default: all)")
    parser.add_argument("--batch-size", type=int, default=8, help="of the batch that is timed (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/export"))
    arguments = parser.parse_args()
    model, tokenizer, evaluation, calibration, classes = TASKS[arguments.task](arguments)
    evaluation = evaluation[: arguments.rows]
    place = arguments.output / arguments.task

    models = {"dense": model, "pruned": pruned_model(model, tokenizer, calibration, arguments, place / "pruned")}
    sessions, found = {}, {}
    for name, each in models.items():
        for quantize in (None, "int8"):
            label = " + ".join([part for part in (name, quantize) if part])
            folder = place / (label.replace(" + ", "-") + "-onnx")
            if not folder.is_dir():
                started = time.perf_counter()
                texts = [row["text"] for row in calibration[:48]]
                export_model(each, folder, data=texts, processor=tokenizer, quantize=quantize)
                print(f"{label}: exported in {time.perf_counter() - started:.0f} s", flush=True)
            note = json.loads((folder / "optin_export.json").read_text(encoding="utf-8"))
            sessions[label] = OnnxSession(folder / "model.onnx", threads=1)
            found[label] = {
                "megabytes": sum(note["files"].values()) / 1e6,
                "distance": (note["quantized"] or note["check"])["distance"],
                "accuracy": accuracy(sessions[label], tokenizer, evaluation, classes),
            }
            print(json.dumps({label: found[label]}), flush=True)
    batch = encoded(tokenizer, evaluation[: arguments.batch_size])
    times = times_in_turn([lambda run=run: run(batch) for run in sessions.values()], arguments.repeats)
    first = times[0]
    for label, seconds in zip(sessions, times, strict=True):
        ratio = statistics.median(one / other for one, other in zip(first, seconds, strict=True))
        found[label] |= {"milliseconds": 1e3 * statistics.median(seconds), "speed": ratio}
    settings = {
        "rows": len(evaluation),
        "batch": list(batch["input_ids"].shape),
        "flops": arguments.flops,
        "samples": arguments.samples,
        "seed": arguments.seed,
        "hardware": hardware(torch.device("cpu")),
    }
    place.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"settings": settings, "found": found}, indent=2)
    (place / "figures.json").write_text(f"{text}\n", encoding="utf-8")
    print(json.dumps(settings))
    for label, each in found.items():
        print(
            f"{label:14} {each['megabytes']:6.1f} MB  accuracy {100 * each['accuracy']:.1f}  "
            f"{each['milliseconds']:7.1f} ms  {each['speed']:.2f} times the dense model's speed"
        )


def pruned_model(model, tokenizer, rows, arguments, folder):
    """The pruned model as it is loaded from its folder, made if it is not there."""
    if not folder.is_dir():
        config = OptinConfig(flops=arguments.flops, num_samples=arguments.samples, seed=arguments.seed)
        OptinPruner(model, tokenizer).prune([row["text"] for row in rows], config, save_dir=folder)
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def encoded(tokenizer, rows):
    """A padded batch."""
    return tokenizer([row["text"] for row in rows], padding=True, truncation=True, return_tensors="pt")


def accuracy(session, tokenizer, rows, classes, batch_size=50):
    """Share of rows whose class is right."""
    right, rows = 0, sorted(rows, key=lambda row: len(row["text"]))
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        predicted = classes[session(encoded(tokenizer, part))["logits"].argmax(-1)]
        right += int((predicted == torch.tensor([row["label"] for row in part])).sum())
    return right / len(rows)


if __name__ == "__main__":
    main()
