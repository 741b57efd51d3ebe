"""From samples in whatever form to batches of model inputs."""
