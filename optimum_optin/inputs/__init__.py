"""From samples of whatever form to batches of model inputs."""
