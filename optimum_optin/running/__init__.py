"""Where and how code runs: processes, random streams, and any model's forward pass."""
