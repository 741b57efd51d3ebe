"""Start-up of the command line: `optimum-cli optin --help` against `optimum-cli --help`, run in turn.

python examples/benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import time

RUNS = 21


def seconds(*words):
    """Wall-clock time of one run."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "optimum.commands.optimum_cli", *words], stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - started


def main():
    pairs = [(seconds("--help"), seconds("optin", "--help")) for _ in range(RUNS + 1)][1:]  # the first warms up
    plain, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"optimum-cli --help: {1e3 * plain:.0f} ms, optimum-cli optin --help: {1e3 * ours:.0f} ms")
    print(f"median ratio of neighbouring runs: {statistics.median(other / one for one, other in pairs):.2f}")


if __name__ == "__main__":
    main()
