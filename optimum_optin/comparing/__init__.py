"""Comparing the dense and the masked network: distances, kinds of output, and which pixels."""
