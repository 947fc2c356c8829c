"""The stored voxels of one record: read, turned upright, cropped, resized, rounded."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from mg3d.datasets.schema import INTENSITIES
from mg3d.preparation import geometry
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.registry import READERS
from mg3d.preparation.recipe import Recipe
from mg3d.preparation.records import VolumeRecord


def make_volume(record: VolumeRecord, root: Path, recipe: Recipe) -> tuple[np.ndarray, dict[str, Any]]:
    """The voxels [z, y, x] of `recipe.shape` (int16 HU or uint8 grey), and what the index says of them.

    Raises:
        Refusal: the volume cannot be used.
    """
    try:
        raw = READERS[record.reader](record, root)
        cropped = geometry.crop_center(raw.voxels)
        values = geometry.resize(cropped, recipe.shape, scale=raw.scale, limits=recipe.limits(record.dataset))
    except MemoryError:
        raise Refusal("oom") from None
    image = values.round_().numpy().astype(INTENSITIES[recipe.unit(record.dataset)].to_pandas_dtype())
    spacing = raw.spacing_mm
    stored_mm = spacing and [mm * before / after for mm, before, after in zip(spacing, cropped.shape, recipe.shape)]
    facts = {
        "spacing_mm": stored_mm,
        "source_shape": list(raw.voxels.shape),
        "source_spacing_mm": spacing and list(spacing),
        "hu_rule": raw.rule,
        "image_sha256": hashlib.sha256(image).hexdigest(),
        **({"note": raw.note} if raw.note else {}),
    }
    return image, facts
