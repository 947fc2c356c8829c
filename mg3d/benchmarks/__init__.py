"""Measurements of two things in one run, called by tools/benchmark.py; no test asserts a time."""
