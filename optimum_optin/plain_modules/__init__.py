"""Pruned modules of plain PyTorch on disk: weights, a file that says what was cut, and how to load them."""
