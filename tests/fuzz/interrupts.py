"""Ctrl-C at every line of our package that score and prune run: what is left behind.

    python tests/fuzz/interrupts.py [signal|raise|twice|calls] [CASE ...] [--visits N] [--every N] [--at FILE]

prints how many moments there were, how many left something, and what.
"""

import argparse
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "keeping")]

from interruptible import CASES  # noqa: E402
from interrupting import interrupted_everywhere  # noqa: E402


def chosen(arguments, number, place):
    return number % arguments.every == 0 and arguments.at in place


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("how", choices=["signal", "raise", "twice", "calls"], nargs="?", default="signal")
    parser.add_argument("cases", nargs="*", default=[])
    parser.add_argument("--visits", type=int, default=1)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--at", default="", help="part of the file's name")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    for name in arguments.cases or CASES:
        work, models = CASES[name]()
        started = time.perf_counter()
        found = interrupted_everywhere(
            work, models, arguments.how, arguments.visits, lambda number, place: chosen(arguments, number, place)
        )
        bad = {place: each for place, each in found.items() if each}
        models = sum(any(not line.startswith("/process") for line in each) for each in bad.values())
        print(
            f"{name}: {len(found)} moments, {len(bad)} left something "
            f"({models} in the model), {time.perf_counter() - started:.0f} s"
        )
        kinds = Counter(line.split(":")[0].split("/")[-1] for each in bad.values() for line in each)
        print("   ", dict(kinds.most_common(30)))
        for place, each in list(bad.items())[:60]:
            print("   ", *place, len(each), each[:2])
        sys.stdout.flush()


if __name__ == "__main__":
    main()
