"""Pre-training: settings -> model and data -> a Lightning run -> evidence. The only place that wires them together."""
