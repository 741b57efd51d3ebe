"""What must follow when units go, found out on copies: counters, biases, layers that hang together, caches."""
