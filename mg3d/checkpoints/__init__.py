"""Weights from files: what a file holds, how its tensors are called here, and what was loaded of it."""
