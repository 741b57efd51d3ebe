"""From a trained model to a pruned, measured and published one: seconds for a command, and for five lines of Python.

    python examples/benchmarks/road.py outputs/glue/sst2 --glue-dir GLUE

The model is an SST-2 classifier in a folder (`examples/finetune_glue.py sst2`), GLUE is read from TSV files, and the
Hub is the tests' own on the loopback (`tests/hub_server.py`): no time is spent on a network. Each way runs in a process
of its own, imports included, and what it pushed is loaded back.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from hub_server import HubServer  # noqa: E402

COMMAND = """\
prune {model} --calibration {glue}/SST-2/train.tsv --flops 0.6 --output {output}
--evaluate glue/sst2 --data-dir {glue} --push-to-hub me/by-command"""

PYTHON = """\
from optimum_optin import OptinPruner
pruner = OptinPruner.from_pretrained("{model}")
pruner.prune(pruner.get_calibration_dataset("{glue}/SST-2/train.tsv"))
pruner.evaluate("glue/sst2", data_dir="{glue}")
pruner.push_to_hub("me/by-python")"""

LOAD = """\
import optimum_optin
from transformers import pipeline
print(pipeline("text-classification", model="{repo}")("a gripping film"))"""


def timed(words, environment):
    """Run Python with these arguments; its seconds, by the clock and of processor, and what it printed."""
    started, before = time.perf_counter(), os.times()
    done = subprocess.run([sys.executable, *words], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    seconds, after = time.perf_counter() - started, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return f"{seconds:.0f} s ({processor:.0f} s of processor)", done.stdout


def main():
    """Walk both roads and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of an SST-2 classifier")
    parser.add_argument(
        "--glue-dir", type=Path, required=True, help="folder that holds SST-2/train.tsv and SST-2/dev.tsv"
    )
    arguments = parser.parse_args()
    with HubServer() as hub, tempfile.TemporaryDirectory() as scratch:
        places = {
            "model": arguments.model.resolve(),
            "glue": arguments.glue_dir.resolve(),
            "output": f"{scratch}/pruned",
        }
        hub_options = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_me", "HF_HOME": scratch, "HF_HUB_DISABLE_XET": "1"}
        environment = {**os.environ, **hub_options}
        command = ["-m", "optimum.commands.optimum_cli", "optin", *COMMAND.format(**places).split()]
        for way, words in (("command", command), ("python", ["-c", PYTHON.format(**places)])):
            seconds, printed = timed(words, environment)
            loading, answer = timed(["-c", LOAD.format(repo=f"me/by-{way}")], environment)
            print(f"{way}: {seconds}; loaded back in {loading}: {answer.strip()}\n{printed}", flush=True)


if __name__ == "__main__":
    main()
