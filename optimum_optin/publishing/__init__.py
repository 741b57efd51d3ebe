"""What is written beside a model, and its way to the Hub."""
