"""Inference with a trained model on new scans: `mg3d.load`, command-line tools, search index, viewer."""
