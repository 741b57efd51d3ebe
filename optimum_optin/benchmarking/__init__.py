"""Benchmarks fit to be quoted: a dense and a pruned model in several forms, batches and lengths, side by side."""

from ..timing.machine import Machine
from ..timing.speedups import Speedup
from .cells import Cell, Form
from .results import Benchmark
from .run import run_benchmark
from .variants import VARIANTS

__all__ = ["VARIANTS", "Benchmark", "Cell", "Form", "Machine", "Speedup", "run_benchmark"]
