"""Offline web viewer: scans of one source with the outputs of a model."""
