"""Benchmarks fit to be quoted: a dense and a pruned model in several forms, batches and lengths, side by side."""

from ..timing.machine import Machine
from .results import Benchmark, Cell, Form
from .run import run_benchmark
from .speedups import Speedup
from .variants import VARIANTS

__all__ = ["VARIANTS", "Benchmark", "Cell", "Form", "Machine", "Speedup", "run_benchmark"]
