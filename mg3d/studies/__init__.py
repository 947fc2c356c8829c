"""Studies: named runs of pre-training over several seeds, their metrics on held-out patients, and one table of differences."""
