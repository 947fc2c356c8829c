"""Runs of the preparation on small trees, and what they wrote."""

from mg3d.datasets.arrow import VolumeIndex
from mg3d.datasets.schema import SPLITS, index_path
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.run import PrepareOptions

SMALL = Recipe(shape=(32, 24, 32))


def options(root, out, others=(), **more):
    roots = {"ct_rate": root, **dict(others)}
    return PrepareOptions(out=out, **{"roots": roots, "recipe": SMALL, "val_patients": 1, "shard_rows": 4, **more})


def files(out, pattern="*"):
    """Path relative to `out` -> bytes."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob(pattern) if path.is_file()}


def volumes(out):
    """Id -> split and voxels of every CT-RATE volume."""
    found = {}
    for split in SPLITS:
        index = VolumeIndex(index_path(out, "ct_rate", split))
        found |= {name: (split, index.volume(row)) for row, name in enumerate(index.table["volume_id"].to_pylist())}
    return found


def hashes(out):
    """Id -> SHA-256 of the voxels."""
    tables = [VolumeIndex(index_path(out, "ct_rate", split)).table for split in SPLITS]
    return {row["volume_id"]: row["image_sha256"] for table in tables for row in table.to_pylist()}
