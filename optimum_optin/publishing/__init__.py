"""Writing a pruned model with all that goes with it, and pushing it to the Hub."""
