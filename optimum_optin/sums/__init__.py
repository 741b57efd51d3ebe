"""Sums over streamed rows: means, covariances, products; their memory does not grow with the rows."""
