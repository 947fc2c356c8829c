"""Matplotlib figures from arrays and tables, and self-contained HTML pages."""
