"""What units cost: in multiply-accumulates, parameters, bytes and milliseconds, of which budgets are made."""
