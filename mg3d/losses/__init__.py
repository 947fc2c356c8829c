"""The objectives, one file each: fields of `types.Features` in, one scalar out; no parameters, no disk, no Lightning.

Value on W ranks: (sum over all ranks) / (count over all ranks), whatever the ranks hold; see `mg3d.distributed`.
"""
