"""The stored voxels of one record: read, turned upright, cropped, resized, rounded."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mg3d.datasets.schema import INTENSITIES
from mg3d.preparation import geometry
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.registry import READERS
from mg3d.preparation.recipe import MARGIN_MM, Recipe
from mg3d.preparation.records import RawVolume, VolumeRecord


def make_volume(record: VolumeRecord, root: Path, recipe: Recipe) -> tuple[np.ndarray, dict[str, Any]]:
    """The voxels [z, y, x] of `recipe.shape` (int16 HU, uint8 of a window, or uint8 grey), and what the index says of them.

    Raises:
        Refusal: the volume cannot be used.
    """
    try:
        raw = READERS[record.reader](record, root)
        image, box = shape_volume(raw, recipe, record.dataset)
    except MemoryError:
        raise Refusal("oom") from None
    spacing = raw.spacing_mm
    stored_mm = spacing and [mm * (end - start) / after for mm, (start, end), after in zip(spacing, box, recipe.shape)]
    facts = {
        "spacing_mm": stored_mm,
        "source_shape": list(raw.voxels.shape),
        "source_spacing_mm": spacing and list(spacing),
        "hu_source": raw.hu_source,
        "image_sha256": hashlib.sha256(image).hexdigest(),
        **({"note": raw.note} if raw.note else {}),
    }
    return image, facts


def shape_volume(raw: RawVolume, recipe: Recipe, dataset: str) -> tuple[np.ndarray, geometry.Box]:
    """A raw volume as it is stored for a data set, [z, y, x] of `recipe.shape`, and the box of it that was resized to that.

    Raises:
        Refusal: voxels that are not finite, or no body or spacing for a crop that needs them.
    """
    box = _box(raw, recipe)
    cropped, padding = geometry.cut(raw.voxels, box)
    values = geometry.resize(
        cropped, recipe.shape, scale=raw.scale, limits=recipe.limits(dataset), kernel=recipe.resize, padding=padding
    )
    if not values.isfinite().all():
        raise Refusal("hu_ambiguous", "voxels that are not finite")
    return _store(values, recipe, recipe.unit(dataset)), box


def _box(raw: RawVolume, recipe: Recipe) -> geometry.Box:
    if recipe.crop == "body":
        return geometry.margin_box(raw.voxels, raw.scale, raw.spacing_mm, MARGIN_MM)
    if recipe.crop == "mm":
        return geometry.mm_box(raw.voxels, raw.scale, raw.spacing_mm, recipe.crop_mm)
    return geometry.center_box(raw.voxels.shape)


def _store(values: Tensor, recipe: Recipe, unit: str) -> np.ndarray:
    """Rounds float32 [z, y, x], for `hu8` after its window is spread over 0 to 255."""
    if unit == "hu8":
        low, high = recipe.store_window
        values = values.clamp(low, high).sub_(low).mul_(255 / (high - low))
    return values.round_().numpy().astype(INTENSITIES[unit].to_pandas_dtype())
