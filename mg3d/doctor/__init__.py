"""Checks of raw data and prepared Arrow files before training. `checks.py` is the list of checks."""
