"""How voxels are made from a raw volume: every parameter that decides them. Stored with each file, hashed into each shard."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mg3d.datasets.schema import DATASETS, INTENSITIES
from mg3d.preparation import geometry
from mg3d.preparation.hounsfield import AIR_HU, AIR_SHARE, CLIP_HU, PADDING_HU
from mg3d.settings.schema import CROP, volume_shape

CROPS = {
    "fraction": "fraction of each axis, centred", "body": "box of the largest body", "mm": "mm around the body's middle",
}  # fmt: skip
"""Kind of crop -> how index files tell it."""
_CLIP = {"hu": CLIP_HU, "uint8_unknown_window": (0, 255)}
_KERNELS = {"antialias": "triangle, antialiased, separable", "compat": "linear, not antialiased, edges aligned"}
MARGIN_MM = 10.0
"""Of the crop kind `body`."""
_MM = (10.0, 1500.0)
"""Shortest and longest side of a crop in mm."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The chosen preprocessing; the defaults are the paper's volume.

    Raises:
        ValueError: sizes or a window that no volume can have, or `crop_mm` without `crop="mm"` and the other way round.
    """

    shape: tuple[int, int, int] = volume_shape(128)
    """Voxels (z, y, x) of a stored volume."""
    crop: Literal["fraction", "body", "mm"] = "fraction"
    """fraction: the central `CROP` of every axis, as the original; body: the box of the body; mm: `crop_mm` around its middle."""
    crop_mm: tuple[float, float, float] | None = None
    """z y x."""
    resize: Literal["antialias", "compat"] = "antialias"
    """antialias: a triangle as wide as the coarser grid's voxel; compat: the original's, which skips voxels when it shrinks."""
    store: Literal["int16", "uint8"] = "int16"
    """Type of voxels in HU; uint8 are 256 steps of `store_window`. Grey volumes are uint8 anyway."""
    store_window: tuple[float, float] = (-1000.0, 1000.0)
    """HU that a uint8 of 0 and of 255 stands for."""
    compression: Literal["none", "zstd"] = "none"
    """Of the shards' buffers. Changes their bytes and no voxel, so that neither provenance nor digest know of it."""

    def __post_init__(self) -> None:
        if (self.crop == "mm") != (self.crop_mm is not None):
            raise ValueError(
                f"crop {self.crop!r}, crop_mm {self.crop_mm}: the kind 'mm' takes three lengths (--crop-mm Z Y X), others none"
            )
        if self.crop_mm and not all(_MM[0] <= length <= _MM[1] for length in self.crop_mm):
            raise ValueError(f"crop_mm {self.crop_mm}: every side must be {_MM[0]:g} to {_MM[1]:g} mm")
        low, high = self.store_window
        if not CLIP_HU[0] <= low < high <= CLIP_HU[1]:
            raise ValueError(f"store_window {low:g} to {high:g} HU must rise and lie within {CLIP_HU[0]} to {CLIP_HU[1]}")

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Recipe":
        """The recipe that an index file of a data set in HU tells in its metadata `preproc`.

        Steps that no recipe chooses (limits, the air of a scan) are not looked at: compare `provenance` with what was told.

        Raises:
            ValueError: a crop, a kernel or numbers that this program does not know.
        """
        try:
            crop, kernel = (
                next(name for name, words in known.items() if words == found)
                for known, found in ((CROPS, told["crop"]["kind"]), (_KERNELS, told["resize"]["kernel"]))
            )
            length = told["crop"].get("zyx_mm")
            store = {"store": "uint8", "store_window": tuple(told["store"]["window_hu"])} if "store" in told else {}
            shape = tuple(told["resize"]["zyx"])
            return cls(shape=shape, crop=crop, crop_mm=tuple(length) if length else None, resize=kernel, **store)
        except (KeyError, TypeError, ValueError, StopIteration, RuntimeError) as error:
            raise ValueError(f"the crop and resize {told.get('crop')}, {told.get('resize')} are not known here") from error

    def unit(self, dataset: str) -> str:
        """The key of INTENSITIES in which a data set's voxels are stored."""
        unit = DATASETS[dataset].unit
        return "hu8" if unit == "hu" and self.store == "uint8" else unit

    def limits(self, dataset: str) -> tuple[float, float]:
        """Lowest and highest value before the resize, HU or grey."""
        return _CLIP[DATASETS[dataset].unit]

    def provenance(self, dataset: str) -> dict[str, Any]:
        """All parameters as builtins, in the order of the steps.

        Raises:
            ValueError: a crop that needs HU and a spacing, for a data set that has neither.
        """
        steps = {
            "version": 1,
            "read": {
                "order": "LPS",
                "max_shear_degrees": geometry.MAX_SHEAR_DEGREES,
                "max_rotation_degrees": geometry.MAX_ROTATION_DEGREES,
            },
            "crop": self._crop(dataset),
            "resize": {"zyx": list(self.shape), "kernel": _KERNELS[self.resize], "rounding": "to nearest even"},
            "clip": list(self.limits(dataset)),
            "limits": {
                "spacing_mm": list(geometry.SPACING_MM), "slices": geometry.MIN_SLICES, "length_mm": geometry.MAX_LENGTH_MM,
            },
        }  # fmt: skip
        if DATASETS[dataset].unit == "hu":
            steps["hu"] = {"air_hu": list(AIR_HU), "share": AIR_SHARE, "padding_hu": PADDING_HU, "table": "when stored is not HU"}
        else:
            steps["slices"] = "by number, reversed: files run from superior to inferior"
        if self.unit(dataset) == "hu8":
            steps["store"] = {"dtype": "uint8", "window_hu": list(self.store_window)}
        return steps

    def _crop(self, dataset: str) -> dict[str, Any]:
        if self.crop == "fraction":
            return {"kind": CROPS["fraction"], "zyx": list(CROP)}
        if DATASETS[dataset].unit != "hu":
            title = DATASETS[dataset].title
            raise ValueError(f"the crop {self.crop!r} needs HU and a spacing, {title} has neither; prepare it with 'fraction'")
        body = {"body_hu": geometry.BODY_HU, "coarse_mm": geometry.COARSE_MM}
        if self.crop == "body":
            return {"kind": CROPS["body"], **body, "margin_mm": MARGIN_MM}
        return {"kind": CROPS["mm"], **body, "zyx_mm": list(self.crop_mm), "padding_hu": geometry.AIR_HU}

    def intensity(self, dataset: str) -> dict[str, Any]:
        """What the index says of the stored numbers."""
        unit = self.unit(dataset)
        window = {"window": list(self.store_window)} if unit == "hu8" else {}
        return {"unit": unit, "dtype": str(INTENSITIES[unit]), "clip": list(self.limits(dataset)), **window}

    def digest(self, dataset: str) -> str:
        """Changes with the preprocessing."""
        return digest(self.provenance(dataset))


def digest(value: Any) -> str:
    """SHA-256 of builtins written as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
