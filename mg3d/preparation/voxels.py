"""Make the stored voxels of one volume: read, reorient, crop, resize, round."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mg3d.datasets.schema import INTENSITIES
from mg3d.preparation import crop
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.registry import READERS
from mg3d.preparation.recipe import BODY_MARGIN_MM, Recipe
from mg3d.preparation.records import RawVolume, VolumeRecord
from mg3d.preparation.resize import resize


def make_volume(record: VolumeRecord, root: Path, recipe: Recipe) -> tuple[np.ndarray, dict[str, Any]]:
    """Voxels [z, y, x] of `recipe.shape` (int16 HU or uint8), and the index fields that describe them.

    Raises:
        Refusal: the volume cannot be used.
    """
    try:
        raw = READERS[record.reader](replace(record, hu=recipe.hu), root)
        image, box = preprocess(raw, recipe, record.dataset)
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
        "changes": raw.changes,
    }
    return image, facts


def preprocess(raw: RawVolume, recipe: Recipe, dataset: str) -> tuple[np.ndarray, crop.Box]:
    """Crop and resize a raw volume. Returns voxels [z, y, x] of `recipe.shape` and the cropped box.

    Raises:
        Refusal: NaN or infinite voxels, or no body or spacing for a crop that needs them.
    """
    box = _crop_box(raw, recipe)
    cropped, padding = crop.cut(raw.voxels, box)
    values = resize(
        cropped, recipe.shape, scale=raw.scale, limits=recipe.limits(dataset), kernel=recipe.resize, padding=padding
    )
    if not values.isfinite().all():
        raise Refusal("hu_ambiguous", "NaN or infinite voxels")
    return _quantize(values, recipe, recipe.unit(dataset)), box


def _crop_box(raw: RawVolume, recipe: Recipe) -> crop.Box:
    if recipe.crop == "body":
        return crop.margin_box(raw.voxels, raw.scale, raw.spacing_mm, BODY_MARGIN_MM)
    if recipe.crop == "mm":
        return crop.mm_box(raw.voxels, raw.scale, raw.spacing_mm, recipe.crop_mm)
    return crop.center_box(raw.voxels.shape)


def _quantize(values: Tensor, recipe: Recipe, unit: str) -> np.ndarray:
    """Round to the stored type; `hu8` maps its window to 0..255 first."""
    if unit == "hu8":
        low, high = recipe.uint8_window
        values = values.clamp(low, high).sub_(low).mul_(255 / (high - low))
    return values.round_().numpy().astype(INTENSITIES[unit].to_pandas_dtype())
