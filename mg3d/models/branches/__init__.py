"""Branches of the model: each owns the heads and the losses of its objectives. `mg3d/settings/objectives.py` lists them."""
