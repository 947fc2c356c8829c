"""Benchmarks of tools/benchmark.py: each measures mg3d and a baseline alternately in one run. No test asserts a time."""
