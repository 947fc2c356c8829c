"""The preprocessing recipe: all parameters that determine the stored voxels, written to every index file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mg3d.datasets.schema import DATASETS, INTENSITIES
from mg3d.preparation import geometry
from mg3d.preparation.crop import BODY_HU, COARSE_MM, COUCH_MM, HOLE_MM
from mg3d.preparation.hounsfield import AIR_HU, AIR_QUANTILE, CLIP_HU, PADDING_HU
from mg3d.preparation.resize import AIR_HU as PADDED_HU
from mg3d.preparation.resize import KERNELS
from mg3d.settings.schema import CROP, volume_shape

BODY_MARGIN_MM = 10.0
"""Margin of the crop `body`."""
CROP_MM = (10.0, 1500.0)
"""Smallest and largest side of the crop `mm`."""
_CLIP = {"hu": CLIP_HU, "uint8_unknown_window": (0, 255)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Preprocessing of a data set. The defaults are those of the paper.

    Raises:
        ValueError: an impossible size or window, or `crop_mm` without `crop="mm"` and vice versa.
    """

    shape: tuple[int, int, int] = volume_shape(128)
    """Voxels (z, y, x) of a stored volume."""
    crop: Literal["fraction", "body", "mm"] = "fraction"
    """fraction: the central `CROP` of every axis, as in the original; body: the body's bounding box and a margin; mm: a box of
    `crop_mm` around the body's center."""
    crop_mm: tuple[float, float, float] | None = None
    """z y x in mm."""
    resize: Literal["antialias", "trilinear"] = "antialias"
    """trilinear: without antialiasing, as in the original."""
    dtype: Literal["int16", "uint8"] = "int16"
    """Type of voxels in HU; uint8 has 256 levels of `uint8_window`. Volumes without HU are always uint8."""
    uint8_window: tuple[float, float] = (-1000.0, 1000.0)
    """HU of the values 0 and 255."""
    hu: Literal["infer", "trust"] = "infer"
    """trust: values of NIfTI, MetaImage and NRRD files are HU even if their air is not near -1000. Only for custom data."""
    compression: Literal["none", "zstd"] = "none"
    """Compression of the shards. It does not change voxels, so it is not part of provenance and digest."""

    def __post_init__(self) -> None:
        if (self.crop == "mm") != (self.crop_mm is not None):
            raise ValueError(f"crop {self.crop!r} with crop_mm {self.crop_mm}: use --crop mm and --crop-mm Z Y X together")
        if self.crop_mm and not all(CROP_MM[0] <= length <= CROP_MM[1] for length in self.crop_mm):
            raise ValueError(f"crop_mm {self.crop_mm}: every side must be {CROP_MM[0]:g} to {CROP_MM[1]:g} mm")
        low, high = self.uint8_window
        if not CLIP_HU[0] <= low < high <= CLIP_HU[1]:
            raise ValueError(f"uint8_window {low:g} to {high:g} HU must be increasing and within {CLIP_HU[0]} to {CLIP_HU[1]}")

    @classmethod
    def from_provenance(cls, steps: Mapping[str, Any]) -> "Recipe":
        """The recipe of the metadata entry `preproc` of an index file in HU. Compare `provenance` to check its fixed parameters.

        Raises:
            ValueError: an unknown crop or resize.
        """
        try:
            crop, resize = steps["crop"], steps["resize"]
            length = crop.get("zyx_mm") if crop["kind"] == "mm" else None
            stored = {"dtype": "uint8", "uint8_window": tuple(steps["store"]["window_hu"])} if "store" in steps else {}
            recipe = cls(
                shape=tuple(resize["zyx"]), crop=crop["kind"], crop_mm=length and tuple(length), resize=resize["kernel"],
                hu=steps.get("hu", {}).get("rule", "infer"), **stored,
            )
            if recipe.crop in ("fraction", "body", "mm") and recipe.resize in KERNELS:
                return recipe
            raise ValueError("unknown name")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"unknown crop or resize: {steps.get('crop')}, {steps.get('resize')}") from error

    def unit(self, dataset: str) -> str:
        """Unit of the stored voxels, a key of INTENSITIES."""
        unit = DATASETS[dataset].unit
        return "hu8" if unit == "hu" and self.dtype == "uint8" else unit

    def limits(self, dataset: str) -> tuple[float, float]:
        """Range that values are clipped to before the resize."""
        return _CLIP[DATASETS[dataset].unit]

    def provenance(self, dataset: str) -> dict[str, Any]:
        """All parameters as JSON values, in the order of the steps.

        Raises:
            ValueError: the crop needs HU and a spacing, and the data set has neither.
        """
        in_hu = DATASETS[dataset].unit == "hu"
        if self.crop != "fraction" and not in_hu:
            title = DATASETS[dataset].title
            raise ValueError(f"--crop {self.crop} needs HU and a voxel spacing, which {title} does not have; use --crop fraction")
        if self.hu == "trust" and dataset != "custom":
            raise ValueError(f"--hu trust is for --custom only; {DATASETS[dataset].title} has its own rules")
        body = {"body_hu": BODY_HU, "coarse_mm": COARSE_MM, "couch_mm": COUCH_MM, "hole_mm": HOLE_MM}
        crops = {
            "fraction": {"zyx": list(CROP)},
            "body": {**body, "margin_mm": BODY_MARGIN_MM},
            "mm": {**body, "zyx_mm": self.crop_mm and list(self.crop_mm), "padding_hu": PADDED_HU},
        }
        steps = {
            "version": 1,
            "read": {
                "order": "LPS",
                "upright_degrees": geometry.UPRIGHT_DEGREES,
                "max_degrees": geometry.MAX_DEGREES,
                "interpolation": "linear",
            },
            "crop": {"kind": self.crop, **crops[self.crop]},
            "resize": {"zyx": list(self.shape), "kernel": self.resize, "rounding": "half to even"},
            "clip": list(self.limits(dataset)),
            "limits": {
                "spacing_mm": list(geometry.SPACING_MM), "slices": geometry.MIN_SLICES, "length_mm": geometry.MAX_LENGTH_MM,
            },
        }  # fmt: skip
        if in_hu:
            steps["hu"] = {"rule": self.hu, "air_hu": list(AIR_HU), "air_quantile": AIR_QUANTILE, "padding_hu": PADDING_HU}
        else:
            steps["slices"] = "by number, reversed: files run from superior to inferior"
        if self.unit(dataset) == "hu8":
            steps["store"] = {"dtype": "uint8", "window_hu": list(self.uint8_window)}
        return steps

    def intensity(self, dataset: str) -> dict[str, Any]:
        """The metadata entry `intensity` of the index."""
        unit = self.unit(dataset)
        window = {"window": list(self.uint8_window)} if unit == "hu8" else {}
        return {"unit": unit, "dtype": str(INTENSITIES[unit]), "clip": list(self.limits(dataset)), **window}

    def digest(self, dataset: str) -> str:
        """Hash of the provenance."""
        return digest(self.provenance(dataset))


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
