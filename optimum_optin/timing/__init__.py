"""Time: models run in turn, so that a drifting machine slows all alike, and on what machine."""
