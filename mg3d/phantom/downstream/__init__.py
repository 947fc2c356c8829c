"""Synthetic sets in the public layouts of the eight downstream data sets, for tests and for trying a task without its data."""
