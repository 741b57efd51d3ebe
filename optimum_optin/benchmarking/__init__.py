"""Benchmarks: a dense and a pruned model timed side by side, in several forms, batches and lengths, fit to be quoted."""

from .machine import Machine
from .results import Benchmark, Cell, Form
from .run import run_benchmark
from .speedups import Speedup
from .variants import VARIANTS

__all__ = ["VARIANTS", "Benchmark", "Cell", "Form", "Machine", "Speedup", "run_benchmark"]
