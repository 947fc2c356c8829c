"""Synthetic chest CT with reports and ground truth, in the layouts of the public data sets. For its limits see docs/data.md."""
