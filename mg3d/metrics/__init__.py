"""Evaluation metrics. NumPy arrays in, numbers out."""
