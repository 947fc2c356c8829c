"""How voxels are made from a raw volume: every parameter that decides them. Stored with each file, hashed into each shard."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from mg3d.datasets.schema import DATASETS, INTENSITIES
from mg3d.preparation import geometry
from mg3d.preparation.hounsfield import AIR_HU, AIR_SHARE, CLIP_HU, PADDING_HU
from mg3d.settings.schema import CROP, volume_shape

_CLIP = {"hu": CLIP_HU, "grey8": (0, 255)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The chosen preprocessing; the defaults are the paper's volume."""

    shape: tuple[int, int, int] = volume_shape(128)
    """Voxels (z, y, x) of a stored volume."""
    crop: Literal["fraction"] = "fraction"
    """fraction: the central `CROP` of every axis, as the original."""
    resize: Literal["antialias"] = "antialias"
    """antialias: a triangle as wide as the coarser grid's voxel."""

    compression: Literal["none", "zstd"] = "none"
    """Of the shards' buffers. Changes their bytes and no voxel, so that neither provenance nor digest know of it."""

    def unit(self, dataset: str) -> str:
        """The key of INTENSITIES in which a data set's voxels are stored."""
        return DATASETS[dataset].unit

    def limits(self, dataset: str) -> tuple[float, float]:
        """Lowest and highest value before it is stored, HU or grey."""
        return _CLIP[DATASETS[dataset].unit]

    def provenance(self, dataset: str) -> dict[str, Any]:
        """All parameters as builtins, in the order of the steps."""
        steps = {
            "version": 1,
            "read": {"order": "LPS", "tilt": "nearest upright grid"},
            "crop": {"kind": "fraction of each axis, centred", "zyx": list(CROP)},
            "resize": {"zyx": list(self.shape), "kernel": "triangle, antialiased, separable", "rounding": "to nearest even"},
            "clip": list(self.limits(dataset)),
            "limits": {
                "spacing_mm": list(geometry.SPACING_MM), "slices": geometry.MIN_SLICES, "length_mm": geometry.MAX_LENGTH_MM,
            },
        }  # fmt: skip
        if DATASETS[dataset].unit == "hu":
            steps["hu"] = {"air_hu": list(AIR_HU), "share": AIR_SHARE, "padding_hu": PADDING_HU, "table": "when stored is not HU"}
        else:
            steps["slices"] = "by number, reversed: files run from superior to inferior"
        return steps

    def intensity(self, dataset: str) -> dict[str, Any]:
        """What the index says of the stored numbers."""
        unit = self.unit(dataset)
        return {"unit": unit, "dtype": str(INTENSITIES[unit]), "clip": list(self.limits(dataset))}

    def digest(self, dataset: str) -> str:
        """Changes with the preprocessing."""
        return digest(self.provenance(dataset))


def digest(value: Any) -> str:
    """SHA-256 of builtins written as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
