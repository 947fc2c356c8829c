"""Evaluation of trained models: cards, zero-shot classification, retrieval, grounding, stress test. Metrics: mg3d.metrics."""
