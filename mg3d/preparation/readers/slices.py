"""Folders of 8-bit slices."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mg3d.preparation import geometry
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.records import RawVolume, VolumeRecord


def read_slices(record: VolumeRecord, root: Path) -> RawVolume:
    """The slices `record.files`, which run from superior to inferior, as one grey volume without a spacing.

    Raises:
        Refusal: a slice is missing, damaged or of another size, or there are too few.
    """
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
    return RawVolume(volume, None, "uint8_unknown_window")
