"""Losses of the objectives, one file each: features in, a scalar out; no parameters.

Every loss is (sum over all ranks) / (count over all ranks), however the samples are split among ranks; see `mg3d.distributed`.
"""
