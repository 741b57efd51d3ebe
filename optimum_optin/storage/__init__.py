"""A pruned model on disk, and its way back through transformers."""
