"""Figures and pages: arrays in, matplotlib figures or one HTML file out."""
