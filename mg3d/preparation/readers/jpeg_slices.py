"""Folders of 8-bit JPEG slices."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mg3d.preparation.geometry import check_slices
from mg3d.preparation.quarantine import Refusal
from mg3d.preparation.readers.limits import check_range
from mg3d.preparation.records import RawVolume, VolumeRecord


def read_jpeg_slices(record: VolumeRecord, root: Path) -> RawVolume:
    """The slices `record.files`, ordered from superior to inferior, as one grey volume without spacing.

    Raises:
        Refusal: missing_file, unreadable, jpeg_truncated, shape_mismatch, grey_range, too_few_slices, constant_image.
    """
    slices = []
    try:
        for name in reversed(record.files):
            with Image.open(root / name) as image:
                slices.append(_grey_values(image))
    except FileNotFoundError:
        raise Refusal("missing_file", "a listed slice") from None
    except PermissionError:
        raise Refusal("unreadable", "a listed slice") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise Refusal("jpeg_truncated", type(error).__name__) from None
    if len({plane.shape for plane in slices}) > 1:
        raise Refusal("shape_mismatch", "slices of different size")
    check_slices(len(slices))
    volume = np.stack(slices)
    check_range(volume.min(), volume.max())
    return RawVolume(volume, None, "uint8_unknown_window")


def _grey_values(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):  # PIL would clip them at 255
        raise Refusal("grey_range", "a slice of more than 8 bits")
    return np.asarray(image.convert("L"))
