"""The stored voxels of one record: read, turned upright, cropped, resized, rounded."""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from mg3d.datasets.schema import INTENSITIES
from mg3d.preparation import geometry
from mg3d.preparation.hounsfield import AIR_HU, AIR_SHARE, CLIP_HU, PADDING_HU, choose_rule
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.records import VolumeRecord
from mg3d.settings.schema import CROP

UNITS = {"ct_rate": "hu", "ctrg": "grey8"}
"""Data set -> key of INTENSITIES."""
_LIMITS = {"hu": CLIP_HU, "grey8": (0, 255)}


def preprocessing(dataset: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Every parameter that decides stored voxels, as builtins; its hash tells whether shards are up to date."""
    steps = {
        "version": 1,
        "read": {"order": "LPS", "tilt": "nearest upright grid"},
        "crop": {"kind": "fraction of each axis, centred", "zyx": list(CROP)},
        "resize": {"zyx": list(shape), "kernel": "triangle, antialiased, separable", "rounding": "to nearest even"},
        "clip": list(_LIMITS[UNITS[dataset]]),
        "limits": {
            "spacing_mm": list(geometry.SPACING_MM), "slices": geometry.MIN_SLICES, "length_mm": geometry.MAX_LENGTH_MM,
        },
    }  # fmt: skip
    if UNITS[dataset] == "hu":
        steps["hu"] = {"air_hu": list(AIR_HU), "share": AIR_SHARE, "padding_hu": PADDING_HU, "table": "when stored is not HU"}
    else:
        steps["slices"] = "by number, reversed: files run from superior to inferior"
    return steps


def make_volume(record: VolumeRecord, root: Path, shape: tuple[int, int, int]) -> tuple[np.ndarray, dict[str, Any]]:
    """The voxels [z, y, x] of `shape` (int16 HU or uint8 grey), and what the index says of them.

    Raises:
        Refusal: the volume cannot be used.
    """
    unit = UNITS[record.dataset]
    try:
        if unit == "hu":
            volume, spacing, rule, scale = _read_ct(record, root)
        else:
            volume, spacing, rule, scale = *_read_slices(record, root), (1.0, 0.0)
        cropped = geometry.crop_center(volume)
        values = geometry.resize(cropped, shape, scale=scale, limits=_LIMITS[unit])
    except MemoryError:
        raise Refusal("oom") from None
    image = values.round_().numpy().astype(INTENSITIES[unit].to_pandas_dtype())
    stored_mm = spacing and [mm * before / after for mm, before, after in zip(spacing, cropped.shape, shape)]
    facts = {
        "spacing_mm": stored_mm,
        "source_shape": list(volume.shape),
        "source_spacing_mm": spacing and list(spacing),
        "hu_rule": rule,
        "image_sha256": hashlib.sha256(image).hexdigest(),
    }
    return image, facts


def _read_ct(record: VolumeRecord, root: Path) -> tuple[np.ndarray, tuple[float, float, float], str, tuple[float, float]]:
    stored, affine = geometry.read_nifti(root / record.files[0])
    table = record.table
    # The header of such a volume was made from the same table: what it says in z is not to be trusted.
    if table is not None and math.isnan(table.spacing_zyx_mm[0]):
        raise Refusal("nan_spacing", "the metadata's ZSpacing is not a number")
    if table is not None:
        found, expected = stored.shape[::-1], table.shape_zyx
        if any(there != said for there, said in zip(found, expected) if not math.isnan(said)):
            sizes = ("x".join(f"{length:g}" for length in lengths) for lengths in (found, expected))
            raise Refusal("shape_mismatch", "{} voxels (z y x), {} in the metadata".format(*sizes))
    volume, spacing = geometry.to_lps(stored, geometry.table_affine(table) if affine is None else affine)
    rule = choose_rule(stored, table and (table.slope, table.intercept))
    return volume, spacing, rule.name, (rule.slope, rule.intercept)


def _read_slices(record: VolumeRecord, root: Path) -> tuple[np.ndarray, None, str]:
    slices = []
    try:
        for name in reversed(record.files):
            with Image.open(root / name) as picture:
                slices.append(np.asarray(picture.convert("L")))
    except FileNotFoundError:
        raise Refusal("missing_file", "a listed slice") from None
    except PermissionError:
        raise Refusal("unreadable", "a listed slice") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise Refusal("jpeg_truncated", type(error).__name__) from None
    if len({plane.shape for plane in slices}) > 1:
        raise Refusal("shape_mismatch", "slices of different size")
    if len(slices) < geometry.MIN_SLICES:
        raise Refusal("too_few_slices", f"{len(slices)} slices, at least {geometry.MIN_SLICES} expected")
    volume = np.stack(slices)
    if volume.min() == volume.max():
        raise Refusal("constant_image", f"every voxel is {volume.flat[0]}")
    return volume, None, "grey8"
