"""Synthetic chest CT with reports and known truth, written in the layouts of CT-RATE and CTRG. docs/data.md tells its limits."""
