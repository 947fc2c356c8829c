"""Synthetic sets in the layouts of the eight downstream data sets, for tests and for trying a task without its data."""
