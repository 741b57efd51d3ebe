"""What passes through a model: trajectories, losses, walks layer by layer."""
