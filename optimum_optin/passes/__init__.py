"""Passes of calibration data through a model: trajectories, losses, walks layer by layer."""
